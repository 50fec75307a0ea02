"""What the notebook and its shell hold besides variables."""

# ruff: noqa: E501
from __future__ import annotations

SESSIONS = {
    "inputs, outputs and underscores": (
        "big = list(range(5))\n# %%\nbig\n# %%\n'text'\n# %%\n_2 + [9]\n",
        (
            "Out[2] is big and _2 is big",
            "Out[4] == [0, 1, 2, 3, 4, 9] and _4 is Out[4]",
            "In[3] == \"'text'\" and _i3 == In[3]",
            "_ is Out[4] and __ == 'text' and ___ is big",
            "In[1].startswith('big')",
        ),
    ),
    "magics, aliases and extensions": (
        "%load_ext autoreload\n%autoreload 1\nfrom IPython.core.magic import register_line_magic\nscale = 2\n@register_line_magic\ndef twice(line): return line * scale\n# %%\n%alias hello echo hello\n%timeit -n1 -r1 pass\n",
        (
            "get_ipython().run_line_magic('twice', 'ab') == 'abab'",
            "'hello' in dict(get_ipython().alias_manager.aliases)",
            "'autoreload' in str(get_ipython().extension_manager.loaded)",
            "twice('x') == 'xx'",
        ),
    ),
    "folder, environment and import path": (
        "import os, sys\nos.makedirs('work/lib', exist_ok=True); open('work/lib/beside.py', 'w').write('def helper(): return 5')\nos.chdir('work'); sys.path.insert(0, os.path.abspath('lib')); os.environ['STUDY'] = 'a'\nfrom beside import helper\nimport beside as b",
        (
            "os.path.basename(os.getcwd()) == 'work' and os.environ['STUDY'] == 'a'",
            "helper() == 5 and b.helper is helper",
            "sys.path[0].endswith('lib')",
        ),
    ),
    "settings of libraries": (
        "import warnings, decimal, numpy as np, pandas as pd, torch\nwarnings.filterwarnings('ignore', message='mine'); decimal.getcontext().prec = 9; np.set_printoptions(precision=3); pd.set_option('display.max_rows', 7); torch.set_default_dtype(torch.float64); np.seterr(divide='raise')",
        (
            "decimal.getcontext().prec == 9 and np.get_printoptions()['precision'] == 3 and np.geterr()['divide'] == 'raise'",
            "pd.get_option('display.max_rows') == 7",
            "torch.ones(1).dtype is torch.float64",
            "any('mine' in str(f) for f in warnings.filters)",
        ),
    ),
    "widgets with their handlers": (
        "import ipywidgets as w\nslider = w.IntSlider(value=7, max=9, description='n'); text = w.Text('x'); box = w.VBox([slider, text]); seen = []\nslider.observe(lambda change: seen.append(change['new']), 'value')\nbutton = w.Button(description='go'); clicks = []; button.on_click(lambda _: clicks.append(slider.value)); link = w.dlink((slider, 'value'), (text, 'value'), str); inter = w.interactive(lambda n: n, n=3); pick = w.Dropdown(options=['a', 'b'], value='b')\n# %%\nslider.value = 8\nslider",
        (
            "slider.value == 8 and slider.max == 9 and slider.description == 'n' and Out[2] is slider",
            "box.children == (slider, text) and link.source[0] is slider",
            "(setattr(slider, 'value', 5), seen, text.value)[1:] == ([8, 5], '5')",
            "(button.click(), clicks)[1] == [5]",
            "pick.value == 'b' and inter.children[0].value == 3",
            "slider.model_id in __import__('comm').get_comm_manager().comms",
        ),
    ),
    "objects of traitlets": (
        "import traitlets as t\nclass Conf(t.HasTraits):\n    rate = t.Float(0.1)\n    log = t.List()\n    @t.observe('rate')\n    def _changed(self, change): self.log = [*self.log, change['new']]\nconf = Conf(); conf.rate = 0.5; heard = []; conf.observe(lambda c: heard.append(c['new']), 'rate'); same = {'conf': conf}",
        (
            "same['conf'] is conf and conf.rate == 0.5 and conf.log == [0.5]",
            "(setattr(conf, 'rate', 0.7), conf.log, heard)[1:] == ([0.5, 0.7], [0.7])",
        ),
    ),
    "a type that the user registered": (
        "import threading\nfrom jupyter_gpu_predict.snapshots.register import register\nclass Client:\n    def __init__(self, url): self.url = url; self.lock = threading.Lock(); self.lock.acquire()\nurls = ['a']; client = Client(urls); both = [client, client]\nregister(Client, lambda c: {'url': c.url}, lambda s: Client(s['url']))",
        ("both[0] is client and both[1] is client", "client.url is urls and client.lock.locked()"),
    ),
    "a traceback looked at": (
        "def fail(x): return 1 / x\n# %%\ntry: fail(0)\nexcept ZeroDivisionError as e: error = e\n",
        (
            "type(error) is ZeroDivisionError and str(error) == 'division by zero'",
            "'return 1 / x' in __import__('inspect').getsource(fail)",
        ),
    ),
}

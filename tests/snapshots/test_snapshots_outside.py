"""State outside the namespace goes from one real kernel to another."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager

ROOT = Path(__file__).resolve().parents[2]

_CELLS = (
    """
import os, sys, random, warnings, decimal, logging
import numpy as np, pandas as pd
import torch
import matplotlib
%load_ext autoreload
os.environ["MINE"] = "set"; os.environ.pop("GONE", None)
os.makedirs(WORK + "/sub", exist_ok=True); os.chdir(WORK + "/sub")
sys.path.insert(0, WORK + "/lib")
random.seed(1); np.random.seed(2); torch.manual_seed(3)
random.random(); np.random.rand(2); torch.rand(2)
warnings.filterwarnings("ignore", message="of mine"); pd.set_option("display.max_rows", 7)
matplotlib.rcParams["lines.linewidth"] = 4.25; np.set_printoptions(precision=3)
torch.set_default_dtype(torch.float64); torch.use_deterministic_algorithms(True)
decimal.getcontext().prec = 9
""",
    """
from IPython.core.magic import register_line_magic, Magics, magics_class, line_magic
@register_line_magic
def shout(line): return line.upper() + str(np.pi)[:3]
@magics_class
class Own(Magics):
    @line_magic
    def whisper(self, line): return line.lower()
get_ipython().register_magics(Own)
%alias sayhi echo hi
""",
    "big = list(range(5))\nbig",
    "def fail(): return 1 / 0\n'text'",
)
_SAVE = """
import json as _json
from jupyter_gpu_predict.snapshots import *
_ip = get_ipython(); _folder = open_store(WORK + "/snaps"); _key = b"k" * 32
_state, _refusals = capture_outside(_ip)
_names = [n for n in _ip.user_ns if n.startswith("_") and n not in _ip.user_ns_hidden]
_report = capture(_ip.user_ns, _folder, _key, name="s", now_s=1.7e9, kernel_id="k", extra=_state,
                  hidden={*_ip.user_ns_hidden, *_names, "_names"})
_later = [random.random(), np.random.rand(), torch.rand(1).item()]
_told = {v.name: v.reason for v in _report.variables if v.status != "saved"}
_ip.history_manager.writeout_cache()
_r = _json.dumps([_report.snapshot_id, _refusals, _told, _report.not_saved, _later,
                  _ip.execution_count, _ip.history_manager.session_number])
"""
_LOAD = """
import json as _json
from jupyter_gpu_predict.snapshots import *
_ip = get_ipython()
_restored = restore(open_store(WORK + "/snaps"), SNAP, b"k" * 32, _ip.user_ns)
_faults = apply_outside(_ip, _restored.extra)
_later = [random.random(), np.random.rand(), torch.rand(1).item()]
_other = [(v.name, v.status, v.reason) for v in _restored.variables if v.status != "restored"]
_r = _json.dumps([_other, _faults, _later, _restored.not_restored])
"""
_CHECKS = (
    "os.environ['MINE'] == 'set' and 'GONE' not in os.environ",
    "os.getcwd() == WORK + '/sub'",
    "WORK + '/lib' in sys.path[:2]",
    "decimal.getcontext().prec == 9",
    "pd.get_option('display.max_rows') == 7",
    "matplotlib.rcParams['lines.linewidth'] == 4.25",
    "np.get_printoptions()['precision'] == 3",
    "torch.get_default_dtype() is torch.float64 and torch.are_deterministic_algorithms_enabled()",
    "any('of mine' in str(f) for f in warnings.filters)",
    "get_ipython().run_line_magic('shout', 'a') == 'A3.1'",
    "get_ipython().run_line_magic('whisper', 'A') == 'a'",
    "'sayhi' in dict(get_ipython().alias_manager.aliases)",
    "'autoreload' in str(get_ipython().extension_manager.loaded)",
    "Out[3] is big and _3 is big and In[3].endswith('big') and _i3 == In[3]",
    "__ is big and _ == 'text'",
    "'return 1 / 0' in __import__('inspect').getsource(fail)",
)


class _Kernel:
    def __init__(self, work, **environment):
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(env={**environment, "PYTHONPATH": str(ROOT)}, cwd=str(work))
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, code, expression=None, **options):
        reply = self.client.execute_interactive(
            code,
            user_expressions={"r": expression} if expression else {},
            output_hook=lambda message: None,
            timeout=60,
            **options,
        )["content"]
        assert reply["status"] == "ok", reply
        if expression:
            return json.loads(eval(reply["user_expressions"]["r"]["data"]["text/plain"]))
        return reply

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.mark.filterwarnings("ignore")
def test_a_session_goes_on_in_another_kernel(tmp_path):
    environment = {**os.environ, "GONE": "1", "IPYTHONDIR": str(tmp_path / "ipython")}
    silent = {"silent": True, "store_history": False}
    first = second = None
    try:
        first, second = (_Kernel(tmp_path, **environment) for _ in range(2))
        first.run(f"WORK = {str(tmp_path)!r}", silent=True)
        for cell in _CELLS:
            first.run(cell)
        saved = first.run(_SAVE, "_r", **silent)
        snapshot, refusals, told, not_saved, later, count, session = saved
        assert (refusals, told, not_saved) == ([], {}, [])
        second.run(f"WORK = {str(tmp_path)!r}; SNAP = {snapshot!r}", silent=True)
        unrestored, faults, later_there, not_restored = second.run(_LOAD, "_r", **silent)
        assert (unrestored, faults, not_restored) == ([], [], [])
        assert later_there == later
        checks = f"_r = _json.dumps([c for c in {_CHECKS!r} if not eval(c)])"
        assert second.run(checks, "_r", **silent) == []
        number = "__import__('json').dumps(get_ipython().history_manager.session_number)"
        assert second.run("", number, **silent) == session
        assert second.run("'next'")["execution_count"] == count
    finally:
        for kernel in (first, second):
            if kernel is not None:
                kernel.close()


@pytest.mark.filterwarnings("ignore")
def test_what_ties_a_session_is_refused_by_name(tmp_path):
    kernel = _Kernel(tmp_path)
    try:
        assert (
            kernel.run(
                "import json; from jupyter_gpu_predict.snapshots import capture_outside as _c",
                "json.dumps(_c(get_ipython())[1])",
            )
            == []
        )
        kernel.run(
            "import ipywidgets, threading, asyncio, signal, subprocess, time\n"
            "w = ipywidgets.IntSlider()\n"
            "t = threading.Thread(target=time.sleep, args=(60,), daemon=True); t.start()\n"
            "async def later(): await asyncio.sleep(60)\n"
            "task = asyncio.get_event_loop().create_task(later())\n"
            "signal.signal(signal.SIGUSR2, lambda *a: None)\n"
            "p = subprocess.Popen(['sleep', '60'])\n"
            "get_ipython().events.register('pre_run_cell', lambda info: None)\n"
        )
        refusals = kernel.run("", "json.dumps(_c(get_ipython())[1])")
        kernel.run("p.kill(); p.wait()")
    finally:
        kernel.close()
    for word in ("jupyter.widget", "thread", "later", "SIGUSR2", "sleep 60", "pre_run_cell"):
        assert any(word in refusal for refusal in refusals), word
    assert len(refusals) == 6

"""torch: tensors, modules, loaders."""

# ruff: noqa: E501
from __future__ import annotations

SESSIONS = {
    "tensors and views": (
        "import torch\nb = torch.arange(10_000.); r = b.view(100, 100); t = r.t(); h = b[5000:]; sc = torch.tensor(3); e = torch.empty(0); bf = torch.ones(3, dtype=torch.bfloat16); ex = torch.ones(1).expand(4); cx = torch.ones(2, dtype=torch.complex64).conj()",
        (
            "(b.__setitem__(5001, -1.), float(h[1]), float(t[1, 50]))[1:] == (-1., -1.)",
            "sc.item() == 3",
            "bf.dtype == torch.bfloat16",
            "ex.stride() == (0,)",
            "cx.is_conj() or cx.dtype == torch.complex64",
            "b.untyped_storage().resizable()",
        ),
    ),
    "leaves, gradients and spent graphs": (
        "import torch\nw = torch.randn(2000, requires_grad=True); loss = (w * w).sum(); loss.backward(); p = torch.nn.Parameter(torch.ones(3)); p.tag = 'x'; shown = repr(loss); hist = [loss]; acc = w.grad",
        (
            "w.requires_grad and w.is_leaf",
            "w.grad is acc or torch.equal(w.grad, acc)",
            "repr(loss) == shown",
            "hist[0] is loss",
            "loss.requires_grad",
            "p.tag == 'x'",
            "type(p) is torch.nn.Parameter",
        ),
    ),
    "sparse, quantized and named things of torch": (
        "import torch\nsp = torch.eye(3).to_sparse(); dt = torch.float16; dev = torch.device('cpu'); g = torch.Generator().manual_seed(3); sz = torch.Size([1, 2]); act = torch.nn.functional.relu; st = g.get_state().clone()",
        (
            "sp.to_dense().sum() == 3",
            "dt is torch.float16",
            "torch.equal(g.get_state(), st)",
            "sz == (1, 2)",
            "act is torch.nn.functional.relu",
        ),
    ),
    "model with tied weights and hooks": (
        "import torch\nfrom torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__(); self.a = nn.Linear(64, 64); self.b = nn.Linear(64, 64); self.b.weight = self.a.weight; self.register_buffer('n', torch.zeros(1))\n    def forward(self, x): return self.b(self.a(x))\nnet = Net(); seen = []\nhandle = net.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape)))\nopt = torch.optim.AdamW(net.parameters()); sch = torch.optim.lr_scheduler.LambdaLR(opt, lambda e: 1 / (e + 1)); first = net.a.weight; scaler = torch.amp.GradScaler('cpu')",
        (
            "net.a.weight is net.b.weight",
            "first is net.a.weight",
            "opt.param_groups[0]['params'][0] is first",
            "sch.optimizer is opt",
            "(net(torch.ones(1, 64)), seen)[1] == [(1, 64)]",
            "(handle.remove(), net(torch.ones(1, 64)), len(seen))[2] == 1",
            "hasattr(opt.step, '_wrapped_by_lr_sched')",
            "scaler.is_enabled() in (True, False)",
        ),
    ),
    "data set and loader": (
        "import torch\nfrom torch.utils.data import DataLoader, Dataset, TensorDataset, random_split\nclass D(Dataset):\n    def __init__(self): self.x = torch.arange(10.)\n    def __len__(self): return 10\n    def __getitem__(self, i): return self.x[i]\nds = D(); dl = DataLoader(ds, batch_size=4, shuffle=False, collate_fn=lambda b: torch.stack(b)); a, b = random_split(TensorDataset(ds.x), [6, 4])",
        (
            "[len(x) for x in dl] == [4, 4, 2]",
            "dl.dataset is ds",
            "len(a) == 6",
            "a.dataset is b.dataset",
        ),
    ),
    "every optimizer": (
        "import torch\nfrom torch import nn\ntorch.manual_seed(0)\nmade = {}\nfor name in ('SGD', 'Adam', 'AdamW', 'NAdam', 'RAdam', 'Adamax', 'Adagrad', 'Adadelta', 'RMSprop', 'Rprop', 'ASGD', 'LBFGS', 'Adafactor'):\n    layer = nn.Linear(8, 8); made[name] = layer, getattr(torch.optim, name)(layer.parameters(), lr=0.01)\ndef step():\n    for layer, opt in made.values():\n        def closure():\n            opt.zero_grad(); loss = layer(torch.ones(2, 8)).pow(2).sum(); loss.backward(); return loss\n        opt.step(closure)\nstep()",
        (
            "all(o.param_groups[0]['params'][0] is l.weight for l, o in made.values())",
            "all(o.state for n, (l, o) in made.items() if n != 'SGD')",
        ),
        "step(); step(); sums = {n: float(l.weight.detach().sum()) for n, (l, o) in made.items()}",
    ),
    "every scheduler": (
        "import torch\nS = torch.optim.lr_scheduler; p = torch.nn.Parameter(torch.ones(3)); opt = torch.optim.SGD([p], lr=0.1, momentum=0.9)\nall_ = [S.StepLR(opt, 2), S.MultiStepLR(opt, [1, 3]), S.ExponentialLR(opt, 0.9), S.CosineAnnealingLR(opt, 5), S.CosineAnnealingWarmRestarts(opt, 5), S.OneCycleLR(opt, 0.1, total_steps=20), S.LinearLR(opt), S.SequentialLR(opt, [S.ConstantLR(opt), S.ExponentialLR(opt, 0.5)], [2]), S.LambdaLR(opt, lambda e: 1 / (e + 1)), S.ReduceLROnPlateau(opt, patience=0)]; rates = []\ndef go():\n    for s in all_:\n        opt.step(); s.step(*([1.0] if isinstance(s, S.ReduceLROnPlateau) else [])); rates.append(opt.param_groups[0]['lr'])\ngo()",
        ("all(s.optimizer is opt for s in all_)", "opt.param_groups[0]['params'][0] is p"),
        "go(); go()",
    ),
    "parametrized, scripted and recurrent modules": (
        "import torch\nfrom torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__(); self.l = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)); self.o = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)); self.rnn = nn.LSTM(4, 3); self.p = nn.ParameterDict({'a': nn.Parameter(torch.ones(2))}); self.register_buffer('b', torch.ones(2), persistent=False)\n    def forward(self, x): return self.rnn(self.o(self.l(x)))[0]\nnet = Net(); x = torch.ones(2, 1, 4); want = net(x).detach(); state = net.state_dict(); opt = torch.optim.Adam(net.parameters()); scripted = torch.jit.script(nn.Linear(2, 2)); avg = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2)); fi = torch.finfo(torch.float16)",
        (
            "torch.equal(net(x), want)",
            "state['p.a'].data_ptr() == net.p['a'].data_ptr()",
            "all(a is b for a, b in zip(opt.param_groups[0]['params'], net.parameters()))",
            "scripted(torch.ones(1, 2)).shape == (1, 2)",
            "(net(x).sum().backward(), opt.step(), torch.equal(net(x), want))[2] is False",
            "fi.bits == 16",
        ),
    ),
    "views in other types": (
        "import torch, numpy as np\nc = torch.ones(4_000, dtype=torch.complex64); r = torch.view_as_real(c); im = c.imag; cj = c.conj(); bf = torch.ones(4_000, dtype=torch.bfloat16); bits = bf.view(torch.int16); t = torch.arange(3_000.); n = t.numpy(); grid = n.reshape(30, 100); back = torch.from_numpy(grid[5]); raw = bytearray(8_000); over = torch.frombuffer(raw, dtype=torch.float32)\nclass Tag(torch.Tensor): pass\nbase = torch.zeros(3_000); tag = base.as_subclass(Tag); tag.label = 'x'; meta = torch.empty(9, device='meta')",
        (
            "(c.fill_(2 + 3j), r[0].tolist(), float(im[5]), cj[0].item())[1:] == ([2.0, 3.0], 3.0, 2 - 3j)",
            "(bf.fill_(2), int(bits[0]))[1] == 16384",
            "(t.__setitem__(501, -1.0), n[501], grid[5, 1], float(back[1]))[1:] == (-1.0, -1.0, -1.0)",
            "(raw.__setitem__(slice(0, 4), b'\\0\\0\\x80?'), float(over[0]))[1] == 1.0",
            "(base.fill_(4), float(tag[0]), type(tag) is Tag, tag.label)[1:] == (4.0, True, 'x')",
            "meta.device.type == 'meta'",
        ),
    ),
    "gradients with hooks and generators": (
        "import torch\nw = torch.ones(3, requires_grad=True); h = w.register_hook(lambda g: g * 2); (w * 3).sum().backward(); grad = w.grad; p = torch.nn.Parameter(torch.zeros(2_000)); part = p.data[5:]; gen = torch.Generator().manual_seed(3); torch.rand(2, generator=gen); torch.manual_seed(9)\nclass Twice(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x): return x * 2\n    @staticmethod\n    def backward(ctx, g): return g * 2\nloader = torch.utils.data.DataLoader(torch.arange(20.), batch_size=4, shuffle=True, generator=gen)",
        (
            "w.grad is grad and grad.tolist() == [6.0] * 3",
            "part.untyped_storage().data_ptr() == p.untyped_storage().data_ptr()",
            "loader.generator is gen",
        ),
        "(w * 3).sum().backward(); y = Twice.apply(w).sum(); y.backward(); drawn = [torch.rand(2, generator=gen), torch.rand(2), [b.tolist() for b in loader]]",
    ),
    "an iteration that is under way": (
        "import torch\nloader = torch.utils.data.DataLoader(torch.arange(8.), batch_size=2); going = iter(loader); first = next(going)",
        ("[b.tolist() for b in loader][0] == first.tolist()", "*tombstones* going"),
    ),
}

"""Work in progress that has to go on bit by bit."""

# ruff: noqa: E501
from __future__ import annotations

_TRANSFORMER = """
import math, random, numpy as np, torch
from torch import nn
torch.manual_seed(0); np.random.seed(1); random.seed(2)
class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.att = nn.MultiheadAttention(d, 4, dropout=0.1, batch_first=True)
        self.ff = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Dropout(0.2), nn.Linear(2 * d, d))
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
    def forward(self, x):
        x = self.n1(x + self.att(x, x, x, need_weights=False)[0])
        return self.n2(x + self.ff(x))
class Model(nn.Module):
    def __init__(self, vocabulary=40, d=32):
        super().__init__()
        self.emb = nn.Embedding(vocabulary, d)
        self.blocks = nn.ModuleList(Block(d) for _ in range(2))
        self.out = nn.Linear(d, vocabulary, bias=False)
        self.out.weight = self.emb.weight
    def forward(self, i):
        x = self.emb(i)
        for block in self.blocks: x = block(x)
        return self.out(x)
model = Model(); norms = []
model.register_forward_hook(lambda m, i, o: norms.append(float(o.detach().norm())))
opt = torch.optim.Adam([{"params": model.blocks.parameters(), "lr": 1e-3}, {"params": [model.emb.weight]}], lr=3e-3)
sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 50)
gen = torch.Generator().manual_seed(7)
data = torch.randint(0, 40, (64, 17), generator=gen); window = data[8:]
losses = []; best = {"loss": math.inf}
def augment(b): return (b + np.random.randint(0, 2)) % 40 if random.random() < 0.5 else b
def step():
    global loss
    b = augment(data[torch.randint(0, 64, (8,), generator=gen)])
    loss = nn.functional.cross_entropy(model(b[:, :-1]).flatten(0, 1), b[:, 1:].flatten())
    opt.zero_grad(); loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step(); sched.step(); losses.append(loss.item())
    if losses[-1] < best["loss"]: best.update(loss=losses[-1], state={k: v.clone() for k, v in model.state_dict().items()})
for _ in range(3): step()
"""
_CONVOLUTION = """
import torch, torch.nn.functional as F
from torch import nn
torch.manual_seed(3)
net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 3))
opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)
sched = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=0)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(48, 1, 12, 12), torch.randint(0, 3, (48,))), batch_size=16, shuffle=True)
x, y = next(iter(loader)); F.cross_entropy(net(x), y).backward()   # gradients are left standing
def epoch():
    total = 0.0
    for x, y in loader:
        loss = F.cross_entropy(net(x), y); loss.backward(); opt.step(); opt.zero_grad(set_to_none=False)
        total += loss.item()
    sched.step(total); return total
history = []
"""
_ANALYSIS = """
import random, numpy as np, pandas as pd
from sklearn.linear_model import SGDClassifier
np.random.seed(5); random.seed(6); rng = np.random.default_rng(7)
df = pd.DataFrame({"x": rng.normal(size=500), "k": pd.Categorical(rng.choice(list("abc"), 500))})
clf = SGDClassifier(random_state=np.random.RandomState(8))
X = rng.normal(size=(200, 3)); y = (X[:, 0] > 0).astype(int); clf.partial_fit(X, y, classes=[0, 1])
walk = [0.0]
"""

SESSIONS = {
    "transformer with Adam in mid-training": (_TRANSFORMER, (), "for _ in range(3): step()"),
    "convolutional net with gradients standing": (
        _CONVOLUTION,
        (),
        "history += [epoch(), epoch()]; noise = torch.rand(5)",
    ),
    "analysis with every random generator": (
        _ANALYSIS,
        (),
        "walk += [np.random.rand(), random.random(), rng.random()]; df['n'] = rng.random(500); clf.partial_fit(X, y); m = df.groupby('k', observed=True).n.mean(); s = df.sample(5)",
    ),
    "quasi-Newton with a closure over the namespace": (
        "import torch\ntorch.manual_seed(4); w = torch.nn.Parameter(torch.randn(5)); target = torch.linspace(0, 1, 5); opt = torch.optim.LBFGS([w], max_iter=3, history_size=4); trace = []\ndef closure():\n    opt.zero_grad(); loss = ((w - target) ** 4).sum(); loss.backward(); trace.append(loss.item()); return loss\nopt.step(closure)",
        ("opt.param_groups[0]['params'][0] is w", "closure.__globals__ is globals()"),
        "opt.step(closure); opt.step(closure)",
    ),
}

"""400 MB of memory seen through views, across torch and numpy, and through containers."""

from __future__ import annotations

from collections.abc import Callable

from ..session import Change, Namespace, Session, checksum


def session(scale: float) -> Session:
    n, m, side = int(50_000 * scale) * 1000, int(25_000_000 * scale), int(2048 * scale**0.5)
    cells = (
        "import numpy as np, torch",
        f"torch.manual_seed(0)\nbase = torch.randn({n})",
        (
            f"rows = base.view(1000, -1); v0 = base[:{n // 5}]\n"
            f"v1 = base[{n // 10}:{3 * n // 10}]\n"
            "vt = rows.t(); np_shared = base.numpy()"
        ),
        (
            f"lin1 = torch.nn.Linear({side}, {side}); lin2 = torch.nn.Linear({side}, {side})\n"
            "lin2.weight = lin1.weight"
        ),
        (
            f"npb = np.random.default_rng(0).standard_normal({m})\n"
            f"np_slice = npb[100:{m // 2}]; np_step = npb[::2]; t_np = torch.from_numpy(npb)"
        ),
        "holder = {'a': [npb], 'b': (base,)}",
    )
    changes = (Change("change", "base[:1000] += 1.0"),)
    return Session(
        ("numpy", "torch"), cells, changes, _values, _aliases, extra_methods=("torch.save",)
    )


_VIEWS = ("base", "rows", "v0", "v1", "vt", "np_shared", "npb", "np_slice", "np_step", "t_np")


def _values(g: Namespace) -> dict[str, Callable[[], object]]:
    def view(name: str) -> Callable[[], object]:
        return lambda: (str(g[name].dtype), tuple(g[name].shape), checksum(g[name]))

    return {
        **{name: view(name) for name in _VIEWS},
        "lin1": lambda: [checksum(p) for p in g["lin1"].parameters()],
        "lin2": lambda: [checksum(p) for p in g["lin2"].parameters()],
        "holder": lambda: (checksum(g["holder"]["a"][0]), checksum(g["holder"]["b"][0])),
    }


def _aliases(g: Namespace) -> dict[str, Callable[[], object]]:
    base, npb = g["base"], g["npb"]
    at, width = len(base) // 10, len(base) // 1000
    base[at] = 123.0
    npb[100] = 321.0
    return {
        "rows": lambda: g["rows"][at // width, at % width] == 123,
        "v0": lambda: g["v0"][at] == 123,
        "v1": lambda: g["v1"][0] == 123,
        "vt": lambda: g["vt"][at % width, at // width] == 123,
        "np_shared": lambda: g["np_shared"][at] == 123,
        "tied weight": lambda: g["lin2"].weight is g["lin1"].weight,
        "np_slice": lambda: g["np_slice"][0] == 321,
        "np_step": lambda: g["np_step"][50] == 321,
        "t_np": lambda: g["t_np"][100] == 321,
        "holder a": lambda: g["holder"]["a"][0] is npb,
        "holder b": lambda: g["holder"]["b"][0] is base,
    }

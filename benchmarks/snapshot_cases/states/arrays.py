"""About 1 GB of arrays and data frames."""

from __future__ import annotations

from collections.abc import Callable

from ..session import Change, Namespace, Session, checksum


def session(scale: float) -> Session:
    n, rows, part = int(12_500_000 * scale), int(1_000_000 * scale), int(500_000 * scale)
    names = int(200_000 * scale)
    half = n // 2
    cells = (
        "import numpy as np, pandas as pd\nrng = np.random.default_rng(0)",
        f"a0, a1, a2 = (rng.standard_normal({n}) for _ in range(3))",
        f"a3, a4, a5 = (rng.standard_normal({n}) for _ in range(3))",
        f"a6 = rng.standard_normal(({n // 2500}, 2500)); a7 = rng.integers(0, 1 << 40, {n})",
        f"part = rng.standard_normal({part})",
        (
            f"df = pd.DataFrame(rng.standard_normal(({rows}, 20)), "
            "columns=[f'c{i}' for i in range(20)])\n"
            f"df['cat'] = pd.Series(np.arange({rows}) % 1000).astype('category')"
        ),
        (
            f"people = pd.DataFrame({{'s': [f'name-{{i:07d}}' for i in range({names})], "
            f"'v': np.arange({names})}})\ncurrent = people"
        ),
        "cfg = {'lr': 1e-3, 'layers': [1, 2, 3]}",
    )
    changes = (
        Change("change", "part += 1.0", part * 8),
        Change("change_inside", f"a3[{half} : {half + part}] += 1.0", part * 8),
    )
    return Session(("numpy", "pandas"), cells, changes, _values, _aliases)


def _values(g: Namespace) -> dict[str, Callable[[], object]]:
    def array(name: str) -> Callable[[], object]:
        return lambda: (str(g[name].dtype), g[name].shape, checksum(g[name]))

    return {
        **{name: array(name) for name in (*(f"a{i}" for i in range(8)), "part")},
        "df": lambda: checksum(g["df"][[f"c{i}" for i in range(20)]].to_numpy()),
        "df columns": lambda: list(g["df"].columns),
        "df categories": lambda: (checksum(g["df"]["cat"].cat.codes.to_numpy()), g["df"].shape),
        "people": lambda: checksum(g["people"]["s"].to_numpy(dtype=object)),
        "people sum": lambda: int(g["people"]["v"].sum()),
        "cfg": lambda: g["cfg"],
        "random numbers to come": lambda: str(g["rng"].bit_generator.state),
    }


def _aliases(g: Namespace) -> dict[str, Callable[[], object]]:
    return {"current is people": lambda: g["current"] is g["people"]}

"""A scikit-learn forest, boosted trees and a pipeline with their data."""

from __future__ import annotations

from collections.abc import Callable

from ..session import Change, Namespace, Session, checksum


def session(scale: float) -> Session:
    n, trees, rounds = int(20_000 * scale**0.5), int(120 * scale**0.5), int(50 * scale**0.5)
    cells = (
        (
            "import numpy as np\n"
            "from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier\n"
            "from sklearn.linear_model import LogisticRegression\n"
            "from sklearn.pipeline import make_pipeline\n"
            "from sklearn.preprocessing import StandardScaler"
        ),
        (
            f"rng = np.random.default_rng(0); X = rng.standard_normal(({n}, 20))\n"
            f"Y = (X[:, 0] + X[:, 1] * X[:, 2] + rng.standard_normal({n}) > 0).astype(int)"
        ),
        f"rf = RandomForestClassifier({trees}, n_jobs=2, random_state=0).fit(X, Y)",
        f"gb = HistGradientBoostingClassifier(max_iter={rounds}, random_state=0).fit(X, Y)",
        "pipe = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y)",
        "best = {'model': rf, 'data': X}",
    )
    changes = (Change("change", "pipe = pipe.fit(X[:1000], Y[:1000])"),)
    libraries = ("numpy", "sklearn.ensemble", "sklearn.pipeline", "sklearn.linear_model")
    return Session(libraries, cells, changes, _values, _aliases)


def _values(g: Namespace) -> dict[str, Callable[[], object]]:
    def chances(name: str) -> Callable[[], object]:
        return lambda: checksum(g[name].predict_proba(g["X"][:2000]))

    return {
        "data": lambda: (checksum(g["X"]), checksum(g["Y"])),
        "forest": chances("rf"),
        "forest's options": lambda: sorted(g["rf"].get_params().items()),
        "trees": lambda: [t.tree_.node_count for t in g["rf"].estimators_],
        "boosted": chances("gb"),
        "pipeline": chances("pipe"),
        "random numbers to come": lambda: str(g["rng"].bit_generator.state),
    }


def _aliases(g: Namespace) -> dict[str, Callable[[], object]]:
    return {
        "best model": lambda: g["best"]["model"] is g["rf"],
        "best data": lambda: g["best"]["data"] is g["X"],
    }

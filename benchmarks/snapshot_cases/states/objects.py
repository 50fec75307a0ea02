"""1.4 million small Python objects that refer to each other.

Where the peak of a restore comes from, for the 200,000 instances alone (96 MB as they were built,
125 MB at the peak, Python 3.11): 16 MB because a restored instance has a dictionary of its own
instead of values beside the keys of its class; 12 MB are the unpickler's memo of a million entries
and what is read ahead. A plain unpickler, which keeps each instance's state until the end besides
copying it, is at 163 MB.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

from ..session import Change, Namespace, Session


def session(scale: float) -> Session:
    n, m = int(200_000 * scale), int(100_000 * scale)
    cells = (
        (
            "recs = []\n"
            f"for _i in range({n}):\n"
            "    recs.append(Rec(_i, recs[_i // 2 - 1] if _i > 2 else None))"
        ),
        "index = {r.name: r for r in recs}",
        f"table = {{f'k{{_i}}': _i for _i in range({m})}}",
        f"words = [str(_i * 31) for _i in range({m})]",
    )
    changes = (
        Change("append", f"recs.append(Rec({n}, recs[7]))"),
        Change("insert", f"recs.insert({n // 2}, Rec({n + 1}, recs[{n // 3}]))"),
    )
    return Session(
        (), cells, changes, _values, _aliases, classes="records", extra_methods=("pickle",)
    )


def _of_all(values: object) -> int:
    return zlib.crc32(repr(values).encode())


def _values(g: Namespace) -> dict[str, Callable[[], object]]:
    return {
        "count": lambda: len(g["recs"]),
        "numbers": lambda: _of_all([r.i for r in g["recs"]]),
        "names": lambda: _of_all([r.name for r in g["recs"]]),
        "points": lambda: _of_all([r.xy for r in g["recs"]]),
        "tags": lambda: _of_all([r.tags for r in g["recs"]]),
        "parents": lambda: _of_all([r.parent and r.parent.i for r in g["recs"]]),
        "index": lambda: _of_all([(k, r.i) for k, r in g["index"].items()]),
        "table": lambda: _of_all(g["table"]),
        "words": lambda: _of_all(g["words"]),
    }


def _aliases(g: Namespace) -> dict[str, Callable[[], object]]:
    def found() -> dict[int, object]:
        return {r.i: r for r in g["recs"]}

    def parents() -> bool:
        by_number = found()
        return all(r.parent is None or r.parent is by_number[r.parent.i] for r in g["recs"])

    def indexed() -> bool:
        by_number = found()
        return all(r is by_number[r.i] for r in g["index"].values())

    return {
        "every parent is the one in the list": parents,
        "the index holds the objects of the list": indexed,
        "their class is the session's": lambda: {type(r) for r in g["recs"]} == {g["Rec"]},
    }

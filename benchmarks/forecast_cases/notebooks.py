"""Sessions of public notebooks: which cell ran when, from the file `notebook_cells`.

The file has numbers only, and of each saved version of a notebook each cell's last run. A
document's code cells are therefore those that are known to be code:

- ``session``: those that ran in the session itself. The rule "next code cell" is strongest here.
- ``versions``: those that ran in any version of the notebook. Cells shift from version to version,
  so that this document has places where no code cell stood.

Both lack code cells that never ran, and in the first every cell does run at some time: whether one
has run yet must be no feature, of a model or a rule.
"""

from __future__ import annotations

import csv
import gzip
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from jupyter_gpu_predict.core.forecast.delay import Moment
from jupyter_gpu_predict.core.trace.document import Trail

FILE = "notebook_cells.csv.gz"
NUMBERS = ("t_start_s", "dur_s", "queued_s", "cell_idx", "gpu_nb", "gpu_cell", "runall")
DOCUMENTS = ("session", "versions")
AT_ONCE_S = 0.05
"""Times of the file are rounded to 10 ms: a request this much before the end was not queued."""


@dataclass(frozen=True)
class Run:
    """One run of a cell; `position` is its place in the document."""

    position: int
    start_s: float
    end_s: float
    sent_s: float
    gpu: bool


@dataclass(frozen=True)
class Session:
    """One session without run-all; `gpu` tells which cells of its document use the GPU."""

    name: str
    owner: str
    gpu_notebook: bool
    gpu: tuple[bool, ...]
    runs: tuple[Run, ...]
    earlier: tuple[tuple[int, int], ...]

    def moves(self) -> Iterator[tuple[int, Trail, Moment, Run]]:
        """Yield each moment at which a run ended and no request was queued.

        With what was known then, and the run that came next; the number counts the runs so far.
        """
        gaps: list[float] = []
        for i, (now, then) in enumerate(pairwise(self.runs), 1):
            positions = tuple(run.position for run in self.runs[:i])
            moved = positions[-1] - positions[-2] if i > 1 else None
            if then.sent_s >= now.end_s - AT_ONCE_S:
                trail = Trail(len(self.gpu), positions, self.earlier)
                yield i, trail, Moment(tuple(gaps), now.end_s - now.start_s, moved), then
            gaps.append(max(0.0, then.start_s - now.end_s))


def read_sessions(folder: Path, document: str) -> tuple[list[Session], Counter[str]]:
    """Return the sessions that were not run with run-all, and what was left out, counted."""
    left_out: Counter[str] = Counter()
    path = folder / FILE
    try:
        with gzip.open(path, "rt", newline="") as file:
            reader = csv.DictReader(file)
            missing = {"owner", "nb", "session", *NUMBERS} - {*(reader.fieldnames or ())}
            if missing:
                raise SystemExit(f"{path}: no column {', '.join(sorted(missing))}")
            rows = [row for row in reader if _sound(row, left_out)]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise SystemExit(f"{path}: not a gzipped CSV file ({error}); get it anew") from error
    by_session: dict[str, list[dict[str, str]]] = {}
    by_notebook: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_session.setdefault(row["session"], []).append(row)
        by_notebook.setdefault(row["nb"], []).append(row)
    sessions = []
    for name, own in by_session.items():
        if float(own[0]["runall"]):
            left_out["sessions with run-all"] += 1
            continue
        others = by_notebook[own[0]["nb"]]
        sessions.append(_session(name, own, others, own if document == "session" else others))
    return sessions, left_out


def _sound(row: dict[str, str], left_out: Counter[str]) -> bool:
    try:
        sound = all(math.isfinite(float(row[n])) and float(row[n]) >= 0 for n in NUMBERS)
    except (TypeError, ValueError):
        sound = False
    left_out["rows with a time or number that is none"] += not sound
    return sound


def _session(
    name: str,
    own: list[dict[str, str]],
    notebook: list[dict[str, str]],
    cells: list[dict[str, str]],
) -> Session:
    own = sorted(own, key=lambda row: float(row["t_start_s"]))
    # What the session itself says of a cell stands above what other versions say.
    gpu = {_whole(r, "cell_idx"): bool(_whole(r, "gpu_cell")) for r in (*cells, *own)}
    places = {cell: place for place, cell in enumerate(sorted(gpu))}
    before = [row for row in notebook if _version(row) < _version(own[0])]
    return Session(
        name=name,
        owner=own[0]["owner"],
        gpu_notebook=_whole(own[0], "gpu_nb") > 0,
        gpu=tuple(gpu[cell] for cell in sorted(gpu)),
        runs=tuple(_run(row, places) for row in own),
        earlier=tuple(_earlier(before, places)),
    )


def _run(row: dict[str, str], places: dict[int, int]) -> Run:
    start, length, queued = (float(row[n]) for n in ("t_start_s", "dur_s", "queued_s"))
    gpu = bool(_whole(row, "gpu_cell"))
    return Run(places[_whole(row, "cell_idx")], start, start + length, start - queued, gpu)


def _earlier(rows: list[dict[str, str]], places: dict[int, int]) -> Iterable[tuple[int, int]]:
    for before, after in pairwise(sorted(rows, key=lambda r: (_version(r), float(r["t_start_s"])))):
        cells = _whole(before, "cell_idx"), _whole(after, "cell_idx")
        if before["session"] == after["session"] and all(cell in places for cell in cells):
            yield places[cells[0]], places[cells[1]]


def _version(row: dict[str, str]) -> int:
    number = row["session"].rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def _whole(row: dict[str, str], name: str) -> int:
    return int(float(row[name]))

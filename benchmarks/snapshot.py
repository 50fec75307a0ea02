"""Saving and restoring sessions: this engine beside the plain write of its bytes and its peers.

Every measurement runs in a process of its own whose `__main__` is the session, after everything
dirty was written out; the methods take turns, so that whatever else the machine does meets all. A
save ends when its bytes are durable: methods that do not see to that themselves get an fsync. A
restore runs in a fresh process, with the session's libraries imported before, and everything it
brings back is compared with what was saved. `make bench` installs the peers (`peers.txt`) into
`.venv-peers`, whose libraries are otherwise those of `.venv`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from snapshot_cases.bars import OURS, PLAIN, Bar, bars
from snapshot_cases.results import Results, unit_of
from snapshot_cases.session import Session, load
from snapshot_cases.states import CASES
from snapshot_cases.worker import MARK

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".venv-peers" / "bin" / "python"
METHODS = (OURS, PLAIN, "dill", "cloudpickle", "pickle", "torch.save", "kishu")
BOOT = "__import__('snapshot_cases.worker').worker.main()"
TIMEOUT_S = 1200
QUICK_SCALE = 0.02
QUICK = {
    "arrays": (OURS, PLAIN),
    "objects": (OURS, "dill", "pickle"),
    "aliased": (OURS,),
    "unpicklable": (OURS,),
}
"""Most of a quick run is the start of processes, so each case has only what it is there for."""
PAUSES = 10


class Bench:
    """Runs workers and keeps what they found."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.scale: float = options.scale
        # Not resolved: a virtual environment is told by the link to its interpreter.
        self.python = os.path.abspath(options.python)
        self.folder = folder
        self.results = Results()

    def case(self, case: str, methods: list[str], repeats: int) -> None:
        """Measure a case with all methods that apply, turn by turn."""
        session = load(case, self.scale)
        turns = [m for m in methods if m in applicable(session)]
        # The plain write writes what the engine wrote in one save, kept for all turns.
        reference = self.folder / f"{case}.reference"
        if PLAIN in turns:
            saved = self.worker("once", case, OURS, reference)
            if "failure" in saved:
                print(f"{case}: no bytes to write plainly: {saved['failure']}", file=sys.stderr)
                turns.remove(PLAIN)
        for turn in range(repeats if turns else 0):
            shift = turn % len(turns)
            for method in turns[shift:] + turns[:shift]:
                started = time.monotonic()
                if method == PLAIN:
                    self.results.note(case, method, self.worker("raw", case, method, reference))
                else:
                    self.round_trip(case, method, session)
                took = time.monotonic() - started
                print(f"{case}: {method}, turn {turn + 1}: {took:.0f} s", file=sys.stderr)
        if case == "arrays" and OURS in turns:
            path = self.folder / f"{case}.pause"
            self.results.note(case, OURS, self.worker("pause", case, str(PAUSES), path))
            remove(path)
        remove(reference)

    def round_trip(self, case: str, method: str, session: Session) -> None:
        """Save in one process, restore in another; a method that failed once is not asked again."""
        if (case, method) in self.results.failures:
            return
        path = self.folder / f"{case}.{method}"
        saved = self.worker("save", case, method, path)
        self.results.note(case, method, saved)
        if "failure" not in saved:
            found = self.worker("load", case, method, path)
            self.results.note(case, method, found)
            if "failure" not in found:
                self.results.judge(case, method, saved, found)
        remove(path)

    def worker(self, phase: str, case: str, method: str, path: Path) -> dict[str, Any]:
        """Run one measurement; a worker that dies or takes too long has failed."""
        command = [self.python, "-W", "ignore", "-c", BOOT, phase, case, method]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(import_path())}
        try:
            done = subprocess.run(
                [*command, str(self.scale), str(path)],
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                env=environment,
                cwd=self.folder,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"failure": f"nothing within {TIMEOUT_S} s"}
        for line in done.stdout.splitlines():
            if line.startswith(MARK):
                return dict(json.loads(line[len(MARK) :]))
        return {"failure": f"the process ended with {done.returncode}: {done.stderr[-300:]}"}


def import_path() -> list[str]:
    return [str(HERE), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


def applicable(session: Session) -> tuple[str, ...]:
    return (OURS, PLAIN, "dill", "cloudpickle", "kishu", *session.extra_methods)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def show(results: Results, cases: list[str], console: Console) -> None:
    """Print a table for each case: medians, with the minimum of what is timed."""
    for case in cases:
        table = Table(title=case, title_justify="left")
        table.add_column("metric")
        methods = [m for m in METHODS if m in results.methods(case)]
        for method in methods:
            table.add_column(method, justify="right")
        metrics = dict.fromkeys(m for c, _, m in results.samples if c == case)
        for metric in metrics:
            table.add_row(
                f"{metric.removesuffix('_' + unit_of(metric).lower())}, {shown_unit(metric)}",
                *(cell(results, case, method, metric) for method in methods),
            )
        for kind in ("values", "aliases", "accounted"):
            counts = [results.right.get((case, method, kind)) for method in methods]
            if any(counts):
                table.add_row(kind, *(f"{c[0]} of {c[1]}" if c else "" for c in counts))
        console.print(table)
        for method in methods:
            if (case, method) in results.failures:
                console.print(f"  {method} fails: {results.failures[case, method]}", markup=False)
            if wrong := results.wrong.get((case, method)):
                console.print(f"  {method} has wrong: {', '.join(wrong)}", markup=False)


def shown_unit(metric: str) -> str:
    return {"B": "MB"}.get(unit_of(metric), unit_of(metric))


def cell(results: Results, case: str, method: str, metric: str) -> str:
    middle = results.median(case, method, metric)
    least = results.least(case, method, metric)
    if middle is None or least is None:
        return ""
    if unit_of(metric) == "s":
        return f"{middle:.3f} [{least:.3f}]"
    return f"{middle / 1e6:.2f}" if unit_of(metric) == "B" else f"{middle:.1f}"


def show_bars(found: list[Bar], scale: float, console: Console) -> None:
    table = Table(title="bars", title_justify="left")
    for column in ("case", "bar", "one side", "other side", "measured", "bar at", "met"):
        table.add_column(column)
    for bar in found:
        limit = "" if bar.limit is None else f"{'>=' if bar.at_least else '<='} {bar.limit:g}"
        table.add_row(
            bar.case,
            bar.name,
            bar.ours,
            bar.other,
            "-" if bar.measured is None else f"{bar.measured:.3g}",
            limit,
            {True: "yes", False: "NO", None: "-"}[bar.met],
        )
    console.print(table)
    if scale != 1:
        console.print(f"Bars hold for whole sessions; these were {scale:g} of that.")


def bar_rows(found: list[Bar]) -> list[dict[str, Any]]:
    rows = []
    for bar in found:
        for metric, value in (("", bar.measured), (" bar", bar.limit), (" met", bar.met)):
            if value is not None:
                row = {"case": bar.case, "method": "bar", "metric": f"{bar.name}{metric}"}
                rows.append({**row, "value": value, "unit": "bool" if metric == " met" else ""})
    return rows


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="PATH", help="write the rows to PATH")
    parser.add_argument("--quick", action="store_true", help="small sessions, one turn, few peers")
    parser.add_argument("--cases", help=f"some of {','.join(CASES)}")
    parser.add_argument("--methods", help=f"some of {','.join(METHODS)}")
    parser.add_argument("--reps", type=int, help="turns; 5 by default")
    parser.add_argument("--scale", type=float, help="size of the sessions; 1 by default")
    parser.add_argument("--folder", help="where to save; a temporary folder by default")
    default = str(PEERS) if PEERS.exists() else sys.executable
    parser.add_argument("--python", default=default, help="the interpreter that has the peers")
    options = parser.parse_args()
    quick = options.quick
    options.reps = options.reps or (1 if quick else 5)
    options.scale = options.scale or (QUICK_SCALE if quick else 1.0)
    for name, default_names, known in (
        ("cases", QUICK if quick else CASES, CASES),
        ("methods", METHODS, METHODS),
    ):
        given = getattr(options, name)
        names = given.split(",") if given else list(default_names)
        if unknown := set(names) - set(known):
            parser.error(f"no such {name}: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        setattr(options, name, names)
    return options


def main() -> int:
    options = parsed()
    changed = {}
    for case in options.cases:
        nbytes = load(case, options.scale).changes[0].nbytes
        if nbytes is not None:
            changed[case] = nbytes
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        bench = Bench(options, Path(folder))
        found: list[Bar] = []
        for case in options.cases:
            quick = QUICK.get(case, METHODS) if options.quick else METHODS
            bench.case(case, [m for m in options.methods if m in quick], options.reps)
            found = bars(bench.results, options.cases, changed)
            # After every case, so that a run cut short has told what it found.
            if options.json:
                rows = bench.results.rows() + bar_rows(found)
                Path(options.json).write_text(json.dumps(rows, indent=1))
    console = Console(width=None if sys.stdout.isatty() else 150)
    show(bench.results, options.cases, console)
    show_bars(found, options.scale, console)
    asked = [c for c in options.cases if OURS in options.methods]
    wrong = [case for case in asked if not bench.results.all_right(case, OURS)]
    if wrong:
        console.print(f"Not all came back: {', '.join(wrong)}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

"""`jupyter gpu replay`: what each policy makes of a trace's workload, side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInputError

if TYPE_CHECKING:
    from rich.console import Console

    from .report import Draw

REFERENCE = "FIFO, clairvoyant"


def add_parser(commands: Any) -> None:
    """Add ``replay`` to the command's parsers."""
    text = "replay traces of notebooks under this policy and others, on simulated GPUs"
    parser = commands.add_parser(
        "replay",
        help=text,
        description=text[0].upper() + text[1:] + ". All times are of a virtual clock.",
    )
    parser.add_argument(
        "trace",
        nargs="*",
        type=Path,
        metavar="TRACE",
        help="CSV file (gzipped or not) or a server's trace store",
    )
    parser.add_argument(
        "--generate",
        action="store_true",
        help="draw from the calibrated generator in place of a trace, and show its calibration",
    )
    parser.add_argument("--gpus", type=_positive, default=8, metavar="N")
    parser.add_argument(
        "--notebooks", type=_numbers, default=[12, 16, 24, 32], metavar="N,N", help="12,16,24,32"
    )
    parser.add_argument(
        "--policy", default="all", metavar="NAMES", help="'all', or names parted by semicolons"
    )
    parser.add_argument("--seeds", type=_positive, default=30, metavar="K", help="30 by default")
    parser.add_argument(
        "--switch",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="time of a bind, a suspend or a restore; a move takes two (2 by default)",
    )
    parser.add_argument(
        "--cap", type=float, metavar="HOURS", help="longest burst; longer ones are cut to it"
    )
    parser.add_argument(
        "--sharing-speed",
        type=float,
        metavar="SPEED",
        help="speed of bursts that share a GPU, in place of the model by duties",
    )
    parser.add_argument(
        "--capacity", action="store_true", help="also seek how many notebooks a GPU can serve"
    )
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="processes")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures to PATH")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="draw them to PATH (.png, .html)")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("use a number of 1 or more")
    return number


def _numbers(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def run(options: argparse.Namespace, console: Console) -> int:
    """Do what the parsed command says and return its exit status.

    Raises
    ------
    BadInputError
        If a trace or a policy is none, or a number makes no sense.
    """
    from . import report
    from .machine import Costs, Machine, at_speed, by_duty
    from .plots import check_path, draw_plot
    from .policies import choose

    if bool(options.trace) == options.generate:
        raise BadInputError("nothing to replay: give traces, or --generate")
    switch_s, speed = options.switch, options.sharing_speed
    if not 0 <= switch_s < 3600 or not (speed is None or 0 < speed <= 1):
        raise BadInputError(
            "a switch takes 0 to 3600 s, and a speed lies in (0, 1]; mend the option"
        )
    if options.plot is not None:
        check_path(options.plot)
    entrants = choose(options.policy)
    costs = Costs(switch_s, switch_s, switch_s, 2 * switch_s)
    machine = Machine(
        options.gpus, costs=costs, speed=by_duty if speed is None else at_speed(speed)
    )
    made: list[dict[str, Any]] = []
    for draw in _draws(options, console):
        for notebooks in options.notebooks:
            results = report.replay(
                draw, notebooks, machine, entrants, options.seeds, workers=options.jobs, told=_told
            )
            report.show(console, results, REFERENCE)
            made += report.rows(results, REFERENCE)
        if options.capacity:
            made += _capacity(console, draw, machine, entrants, options)
    if options.json is not None:
        report.write_rows(options.json, made)
    if options.plot is not None:
        draw_plot(options.plot, made)
    return 0


def _draws(options: argparse.Namespace, console: Console) -> list[Draw]:
    """Return what draws the workloads, having said what is to be known of their sources."""
    from .generator import generate
    from .report import from_trace, show_calibration
    from .traces import read_trace

    if options.generate:
        show_calibration(console)
        return [generate]
    draws: list[Draw] = []
    for path in options.trace:
        trace = read_trace(path)
        console.print(f"{path}: {len(trace.sessions)} sessions, {trace.bursts} bursts")
        for note in trace.notes:
            console.print(f"  {note}")
        draws.append(from_trace(trace, cap_s=None if options.cap is None else 3600 * options.cap))
    return draws


def _capacity(
    console: Console, draw: Draw, machine: Any, entrants: Sequence[Any], options: argparse.Namespace
) -> list[dict[str, Any]]:
    from . import report

    loads = range(machine.gpus, 8 * machine.gpus + 1, max(1, machine.gpus // 2))
    made = []
    for entrant in entrants:
        found = report.capacity(draw, machine, entrant, options.seeds, loads)
        for limit_s, per_gpu in found.items():
            metric = f"notebooks per GPU at p95 <= {limit_s:g} s"
            console.print(f"{entrant.name}: {per_gpu:g} {metric}")
            made.append(report.row(f"{machine.gpus} GPUs", entrant.name, metric, per_gpu, "1"))
    return made


def _told(policy: str, done: int) -> None:
    """Show on a terminal how far the replays are."""
    if sys.stderr.isatty():
        print(f"\r{policy}: {done} replayed\x1b[K", end="\r", file=sys.stderr, flush=True)

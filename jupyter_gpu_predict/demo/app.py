"""`jupyter gpu demo`: run the main job, show it, and say whether everything held."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..errors import GpuPredictError
from .facts import Facts
from .job import Job
from .timeline import Timeline

NOTEBOOKS = (
    "train_transformer.ipynb",
    "train_convnet.ipynb",
    "analyse_frames.ipynb",
    "simulate_diffusion.ipynb",
)


WIDTH_IN_A_FILE = 160


def find_notebooks() -> list[Path]:
    """Return the example notebooks, shipped in the wheel or beside the package in a clone.

    Raises
    ------
    GpuPredictError
        If they are not there.
    """
    here = Path(__file__).resolve().parent
    shipped = Path(sys.prefix, "share", "jupyter-gpu-predict", "examples")
    for folder in (here.parent.parent / "examples", shipped):
        found = [folder / name for name in NOTEBOOKS]
        if all(path.exists() for path in found):
            return found
    raise GpuPredictError("the example notebooks are not installed; run the demo from a clone")


async def _interruptibly(job: Job) -> Facts:
    """Run the job; a SIGTERM ends it as Ctrl-C does, with its server and kernels."""
    task = asyncio.ensure_future(job.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; 0 if every kernel's state equals a plain run's and nothing was lost."""
    parser = argparse.ArgumentParser(
        prog="jupyter gpu demo", description="Run the main job on two simulated GPUs of 512 MiB."
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the facts there")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep logs and database there")
    options = parser.parse_args(argv)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_IN_A_FILE)
    folder = options.keep or Path(tempfile.mkdtemp(prefix="jupyter-gpu-demo-"))
    try:
        with Timeline(console) as timeline:
            timeline.say("two simulated GPUs of 512 MiB: no real GPU is used or needed")
            facts = asyncio.run(_interruptibly(Job(folder, find_notebooks(), timeline)))
        timeline.table(facts)
    except (asyncio.CancelledError, KeyboardInterrupt):
        console.print("The demo was stopped.", style="bright_red")
        return 130
    except GpuPredictError as error:
        console.print(f"The demo could not run: {error}", style="bright_red", markup=False)
        return 1
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    if options.json is not None:
        options.json.write_text(json.dumps(facts.to_json(), indent=2) + "\n")
    short = facts.shortfalls()
    for sentence in short:
        console.print(f"- {sentence}", style="bright_red", markup=False)
    if not short:
        console.print(
            f"All {facts.state_equal} outputs and variables are those of plain kernels.",
            style="bright_green",
        )
    return 1 if short else 0

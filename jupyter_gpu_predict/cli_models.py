"""`jupyter gpu train` and `jupyter gpu models`: learn from the traces, choose what serves."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import NotFoundError

if TYPE_CHECKING:
    from .training.registry import ModelRegistry, ModelVersion


def add_parsers(commands: Any) -> None:
    """Add ``train`` and ``models`` to the command's parsers."""
    text = "train the demand model on the traces of this user's kernels"
    train = commands.add_parser(
        "train",
        help=text,
        description=f"{text[0].upper()}{text[1:]}; it serves if it is no worse than the empirical "
        "model on notebooks it has not seen. Running servers take it over by themselves.",
    )
    _common(train)
    train.add_argument("--traces", metavar="URL", help="database of another trace store")
    train.add_argument("--seed", type=int, default=1, help="of all that is chosen at random")
    train.add_argument("--no-promote", action="store_true", help="keep it, but let nothing change")

    text = "list, show and choose the learned models"
    models = commands.add_parser(
        "models", help=text, description=f"{text[0].upper()}{text[1:]}; lists by default."
    )
    _common(models)
    actions = models.add_subparsers(dest="action", metavar="ACTION")
    for name, text, version in (
        ("list", "list the versions", False),
        ("show", "show what is known of a version", True),
        ("promote", "let a version serve", True),
        ("rollback", "let the version that served before serve again", False),
    ):
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        action.add_argument("kind", nargs="?", default="demand", help="kind of model")
        if version:
            action.add_argument("version", type=int, help="its number")


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--models", metavar="FOLDER", help="folder of other models")


def run(options: argparse.Namespace) -> int:
    """Do what the parsed command says and return its exit status."""
    if options.command == "train":
        return _train(options)
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "list": _list,
        "show": _show,
        "promote": _promote,
        "rollback": _rollback,
    }
    return actions[options.action or "list"](options)


def _registry(options: argparse.Namespace) -> ModelRegistry:
    from .server.doctor import data_paths
    from .training.registry import ModelRegistry

    return ModelRegistry(Path(options.models) if options.models else data_paths().models)


# --------------------------------------------------------------------------- train


def _train(options: argparse.Namespace) -> int:
    from .cli import console_for_people, print_json
    from .server.doctor import database_url
    from .store.trace_store import Store
    from .training.pipeline import train_demand

    url = options.traces or database_url()
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        raise NotFoundError(f"there is no trace store {url}: no server has kept traces there yet")
    with Store(url) as store, _bar(options) as progress:
        done = train_demand(
            store,
            _registry(options),
            now_s=time.time(),
            seed=options.seed,
            promote=not options.no_promote,
            progress=progress,
        )
    if options.json:
        print_json({**_model(done.version), "promoted": done.promoted, "why": done.why})
        return 0
    console = console_for_people()
    console.print(
        f"Trained {done.version.name} on {done.version.examples} examples of "
        f"{done.version.owners} notebooks."
    )
    _print_versions([done.version], done.version.version if done.promoted else None)
    console.print(f"It {'serves now' if done.promoted else 'does not serve'}: {done.why}.")
    return 0


@contextlib.contextmanager
def _bar(options: argparse.Namespace) -> Iterator[Callable[[str, float], None]]:
    """Show a bar on a terminal while something runs; yield what moves it."""
    if options.json or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("train", total=1.0)
        yield lambda text, share: progress.update(task, description=text, completed=share)


# --------------------------------------------------------------------------- models


def _list(options: argparse.Namespace) -> int:
    from .cli import console_for_people, print_json

    registry = _registry(options)
    kinds = [options.kind] if getattr(options, "kind", None) else registry.kinds()
    found = {kind: registry.versions(kind) for kind in kinds}
    if options.json:
        rows = [
            {**_model(v), "serving": v.version == registry.serving(kind)}
            for kind, versions in found.items()
            for v in versions
        ]
        print_json(rows)
        return 0
    if not any(found.values()):
        console_for_people().print(
            f"There are no learned models in {registry.folder}: jupyter gpu train makes one."
        )
    for kind, versions in found.items():
        if versions:
            _print_versions(versions, registry.serving(kind))
    return 0


def _show(options: argparse.Namespace) -> int:
    from .cli import console_for_people, print_json

    registry = _registry(options)
    registry.read(options.kind, options.version)
    version = next(v for v in registry.versions(options.kind) if v.version == options.version)
    serving = registry.serving(options.kind) == version.version
    model = {**_model(version), "serving": serving}
    if options.json:
        print_json(model)
        return 0
    for name, value in model.items():
        console_for_people().print(f"{name}: {value}")
    return 0


def _promote(options: argparse.Namespace) -> int:
    from .cli import console_for_people

    registry = _registry(options)
    registry.promote(options.kind, options.version)
    console_for_people().print(f"{options.kind} {options.version} serves now.")
    return 0


def _rollback(options: argparse.Namespace) -> int:
    from .cli import console_for_people

    number = _registry(options).rollback(options.kind)
    now = "no learned model serves now" if number is None else f"{options.kind} {number} serves now"
    console_for_people().print(f"{now[0].upper()}{now[1:]}.")
    return 0


def _model(version: ModelVersion) -> dict[str, Any]:
    return asdict(version)


def _print_versions(versions: list[ModelVersion], serving: int | None) -> None:
    from .cli import console_for_people, print_table

    rows = [
        (
            v.name,
            datetime.fromtimestamp(v.made_s).strftime("%Y-%m-%d %H:%M"),
            f"{v.examples} of {v.owners}",
            _pair(v, "pinball"),
            _pair(v, "brier"),
            "-" if "coverage" not in v.scores else f"{v.scores['coverage']:.0%}",
            "yes" if v.version == serving else "-",
        )
        for v in versions
    ]
    columns = (
        "model|trained|examples of notebooks|pinball (empirical)|Brier (empirical)|"
        "80 % interval holds|serves"
    )
    print_table(console_for_people(), "Learned models, scored on held-out notebooks", columns, rows)


def _pair(version: ModelVersion, metric: str) -> str:
    if metric not in version.scores or metric not in version.baseline:
        return "-"
    return f"{version.scores[metric]:.4f} ({version.baseline[metric]:.4f})"

"""`jupyter gpu train` and `jupyter gpu models`: learn from the traces, choose what serves."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BadInputError, ModelFileError, NotFoundError

if TYPE_CHECKING:
    from .core.trace.document import Document
    from .training.pipeline import Trained
    from .training.registry import ModelRegistry, ModelVersion


def add_parsers(commands: Any) -> None:
    """Add ``train`` and ``models`` to the command's parsers."""
    text = "train the forecasting models on the traces of this user's kernels"
    train = commands.add_parser(
        "train",
        help=text,
        description=f"{text[0].upper()}{text[1:]}: when a GPU is used (demand) and which cell is "
        "next (content). Each serves if it does better on notebooks it has not seen than what "
        "would serve without it. Running servers take it over by themselves.",
    )
    _common(train)
    train.add_argument("--traces", metavar="URL", help="database of another trace store")
    train.add_argument(
        "--notebooks", metavar="FOLDER", default=".", help="root folder of the server (default: .)"
    )
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
    from .training.content import train_content
    from .training.pipeline import train_demand

    url = options.traces or database_url()
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        raise NotFoundError(f"there is no trace store {url}: no server has kept traces there yet")
    done: list[Trained] = []
    left: list[BadInputError] = []
    with Store(url) as store, _bar(options) as progress:
        registry, read = _registry(options), _reader(Path(options.notebooks))
        trainings: tuple[Callable[..., Trained], ...] = (
            partial(train_demand, store, registry),
            partial(train_content, store, read, registry),
        )
        for train in trainings:
            try:
                trained = train(
                    now_s=time.time(),
                    seed=options.seed,
                    promote=not options.no_promote,
                    progress=progress,
                )
                done.append(trained)
            except BadInputError as error:
                left.append(error)
    if not done:
        raise left[0]
    if options.json:
        rows = [{**_model(d.version), "promoted": d.promoted, "why": d.why} for d in done]
        print_json({"trained": rows, "not_trained": [str(error) for error in left]})
        return 0
    console = console_for_people()
    for one in done:
        version = one.version
        console.print(
            f"Trained {version.name} on {version.examples} examples of {version.owners} notebooks."
        )
        _print_versions([version], version.version if one.promoted else None)
        console.print(f"It {'serves now' if one.promoted else 'does not serve'}: {one.why}.")
    for why in left:
        console.print(f"Not trained: {why}.")
    return 0


def _reader(root: Path) -> Callable[[str], Document | None]:
    """Return what reads the notebook at a path of a server with this root folder."""
    from .core.trace.document import read_document
    from .server.notebook_text import code_cells

    whole = root.resolve()

    def read(path: str) -> Document | None:
        file = (whole / path).resolve()
        if not file.is_relative_to(whole) or file.suffix != ".ipynb":
            return None
        try:
            return read_document(code_cells(file.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, BadInputError):
            return None

    return read


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
    found = (v for v in registry.versions(options.kind) if v.version == options.version)
    if (version := next(found, None)) is None:
        raise ModelFileError(
            f"model {options.kind} {options.version} does not say what it is; delete it"
        )
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
            "\n".join(f"{name} {value:.4f}" for name, value in v.scores.items()) or "-",
            "\n".join(f"{name} {value:.4f}" for name, value in v.baseline.items()) or "-",
            "yes" if v.version == serving else "-",
        )
        for v in versions
    ]
    columns = "model|trained|examples of notebooks|scores|to beat|serves"
    print_table(console_for_people(), "Learned models, scored on held-out notebooks", columns, rows)

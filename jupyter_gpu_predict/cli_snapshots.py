"""`jupyter gpu snapshots`: list, show, verify, export and remove saved sessions."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.sizes import format_bytes
from .errors import GpuPredictError, NotFoundError

if TYPE_CHECKING:
    from rich.tree import Tree

    from .snapshots.inspect.show import Entry, Shown
    from .snapshots.inspect.verify import VerifyReport
    from .snapshots.stores import SnapshotStore

SHOWN_DEPTH = 1


def add_parser(commands: Any) -> None:
    """Add ``snapshots`` and what it can do to the command's parsers."""
    text = "list, show, verify, export and remove saved sessions"
    parser = commands.add_parser(
        "snapshots", help=text, description=text[0].upper() + text[1:] + "; lists by default."
    )
    _common(parser, top=True)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")

    def add(name: str, text: str, snapshot: str | None = None) -> argparse.ArgumentParser:
        action: argparse.ArgumentParser = actions.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + "."
        )
        if snapshot is not None:
            action.add_argument("snapshot", nargs=snapshot, help="name or id of a snapshot")
        _common(action, top=False)
        return action

    add("list", "list the snapshots")
    show = add("show", "show a snapshot's variables without unpickling anything", "?")
    show.add_argument("--depth", type=_depth, default=SHOWN_DEPTH, help="levels below a variable")
    _only(show)
    verify = add("verify", "load a snapshot in a fresh process and compare what comes back", "?")
    verify.add_argument(
        "--python", default=sys.executable, help="the interpreter that the kernel runs"
    )
    export = add("export", "write variables of a snapshot to files", "?")
    export.add_argument(
        "--format",
        required=True,
        choices=("safetensors", "arrow", "dill"),
        help="arrays and tensors to one safetensors file; data frames to Arrow files; "
        "everything to a dill file (arrow and dill load the variables)",
    )
    export.add_argument(
        "--output", required=True, metavar="PATH", help="file, or for arrow a folder"
    )
    _only(export)
    add("gc", "remove what no snapshot needs any more")
    delete = add("delete", "delete snapshots", "+")
    delete.add_argument("--yes", action="store_true", help="do not ask")


def _common(parser: argparse.ArgumentParser, *, top: bool) -> None:
    # What is given before the action must not be overwritten by the action's defaults.
    default: Any = None if top else argparse.SUPPRESS
    parser.add_argument(
        "--json",
        action="store_true",
        default=False if top else argparse.SUPPRESS,
        help="print JSON instead of tables",
    )
    parser.add_argument(
        "--store", metavar="URL", default=default, help="folder or URL of another store"
    )
    parser.add_argument(
        "--key", metavar="FILE", default=default, help="key that its snapshots are signed with"
    )


def _only(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", metavar="A,B", type=_names, help="these variables only")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _depth(text: str) -> int:
    depth = int(text)
    if not 0 <= depth <= 50:
        raise argparse.ArgumentTypeError("use a depth from 0 to 50")
    return depth


def run(options: argparse.Namespace) -> int:
    """Do what the parsed command says and return its exit status."""
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "list": _list,
        "show": _show,
        "verify": _verify,
        "export": _export,
        "gc": _collect,
        "delete": _delete,
    }
    return actions[options.action or "list"](options)


# --------------------------------------------------------------------------- store and key


def _place(options: argparse.Namespace) -> str:
    """Return where the snapshots are: as told, or as this user's servers are configured."""
    if options.store is not None:
        return str(options.store)
    from .server import doctor

    config, _ = doctor._load_config()
    return doctor._setting(config, "snapshot_store") or str(doctor.data_paths(config).snapshots)


def _open(options: argparse.Namespace) -> SnapshotStore:
    from .snapshots.stores import open_store

    place = _place(options)
    if "://" not in place and not Path(place).is_dir():
        raise NotFoundError(f"there are no snapshots in {place}: the folder does not exist")
    return open_store(place)


def _key(options: argparse.Namespace) -> bytes:
    from .server.doctor import data_paths
    from .snapshots.signing import load_or_create_key

    path = Path(options.key) if options.key is not None else data_paths().key
    # Reading must not make a key: nothing could have been signed with it.
    if not path.exists():
        raise NotFoundError(
            f"there is no key {path}, with which a snapshot's signature could be checked; "
            "name it with --key"
        )
    return load_or_create_key(path)


def _find(store: SnapshotStore, wanted: str | None) -> str:
    """Return the id of the snapshot wanted, by default of the latest."""
    if wanted is not None:
        return store.find(wanted)
    listed = store.list()
    if not listed:
        raise NotFoundError(f"there are no snapshots in {store.shown}")
    return listed[-1].snapshot_id


@contextlib.contextmanager
def _bar(options: argparse.Namespace, text: str) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar on a terminal while something runs; yield what moves it."""
    if options.json or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


# --------------------------------------------------------------------------- list


def _list(options: argparse.Namespace) -> int:
    from .cli import console_for_people, print_json, print_table

    found = list(_catalogues(options))
    if options.json:
        print_json([{"source": source, "snapshots": rows} for source, rows in found])
        return 0
    console = console_for_people()
    for source, rows in found:
        if not rows:
            console.print(f"There are no snapshots in {source}.")
            continue
        columns = "name|taken|size|variables|notebook|verified|id"
        print_table(console, f"Snapshots in {source}", columns, map(_row, rows))
    return 0


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    words = {True: "yes", False: "NO", None: "-"}
    return (
        row["name"],
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["created_s"])),
        format_bytes(row["bytes"]),
        str(row["variables"]),
        row["notebook"] or "-",
        words[row.get("verified")],
        row["id"],
    )


def _catalogues(options: argparse.Namespace) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the catalogue of each running server that has one, or else the store's own."""
    from .cli import running_servers

    asked = False
    for server in running_servers() if options.store is None else ():
        try:
            rows = server.get("snapshots")
        except GpuPredictError as error:
            print(f"jupyter gpu snapshots: {error}", file=sys.stderr)
            continue
        if rows is not None:
            asked = True
            yield server.url, rows
    if asked:
        return
    place = _place(options)
    if "://" not in place and not Path(place).is_dir():
        yield f"{place} (it does not exist yet)", []
        return
    from .server.snapshots import snapshot_model

    store = _open(options)
    yield store.shown, [snapshot_model(info) for info in reversed(store.list())]


# --------------------------------------------------------------------------- show


def _show(options: argparse.Namespace) -> int:
    from .cli import console_for_people, print_json
    from .snapshots.inspect.show import show

    store = _open(options)
    snapshot_id = _find(store, options.snapshot)
    shown = show(store, snapshot_id, _key(options), depth=options.depth, only=options.only)
    if options.json:
        print_json(asdict(shown))
    else:
        console_for_people().print(_tree(shown))
    return 0


def _tree(shown: Shown) -> Tree:
    from rich.tree import Tree

    taken = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(shown.created_s))
    size, count = format_bytes(shown.total_bytes), len(shown.variables)
    title = f"{shown.name} ({shown.snapshot_id}): {count} variables, {size}, taken {taken}"
    tree = Tree(f"{title}, Python {shown.python}, {shown.notebook or 'no notebook'}")
    for entry in shown.variables:
        _add_entry(tree, entry)
    return tree


def _add_entry(tree: Tree, entry: Entry) -> None:
    branch = tree.add(_line(entry))
    for child in entry.children:
        _add_entry(branch, child)
    if entry.children and entry.omitted:
        branch.add(f"… {entry.omitted} more")


def _line(entry: Entry) -> str:
    parts = [f"{entry.label}  {entry.type_name}"]
    if entry.shape is not None:
        parts[0] += f" {entry.shape} {entry.dtype}"
    elif entry.length is not None:
        parts[0] += f" of {entry.length}"
    if entry.device not in (None, "cpu"):
        parts[0] += f" on {entry.device}"
    if entry.text is not None:
        parts[0] += f" {entry.text}"
    if entry.nbytes >= 1024 or not entry.text:
        parts.append(format_bytes(entry.nbytes))
    if entry.same_as is not None:
        parts.append(f"the same object as {entry.same_as}")
    if entry.shared_with:
        parts.append(f"shares with {', '.join(entry.shared_with)}")
    if entry.status != "saved":
        parts.append(f"NOT SAVED: {entry.reason}")
    elif entry.reason:
        parts.append(entry.reason)
    return "; ".join(parts)


# --------------------------------------------------------------------------- verify and export


def _verify(options: argparse.Namespace) -> int:
    from .cli import console_for_people, print_json
    from .snapshots.inspect.verify import verify

    store = _open(options)
    snapshot_id = _find(store, options.snapshot)
    key = _key(options)
    with _bar(options, f"verifying {snapshot_id}") as progress:
        report = verify(store, snapshot_id, key, python=options.python, progress=progress)
    if options.json:
        print_json(report.to_dict())
    else:
        console = console_for_people()
        for line in _told(report):
            console.print(line)
        if report.verified:
            console.print("It is whole and comes back as it was saved.", style="green")
        else:
            console.print("It does not come back as it was saved.", style="red")
    return 0 if report.verified else 1


def _told(report: VerifyReport) -> Iterator[str]:
    count = sum(v.status == "same" for v in report.variables)
    size = format_bytes(report.bytes_read)
    yield f"Snapshot {report.snapshot_id}: {count} variables the same, {size} checked"
    yield from (f"  {sentence}" for sentence in (*report.problems, *report.differences))
    for variable in report.variables:
        if variable.status != "same":
            yield f"  {variable.name} ({variable.type_name}): {variable.status}: {variable.reason}"


def _export(options: argparse.Namespace) -> int:
    from .cli import console_for_people, print_json
    from .snapshots.inspect.export import export

    store = _open(options)
    snapshot_id = _find(store, options.snapshot)
    key = _key(options)
    with _bar(options, f"exporting {snapshot_id}") as progress:
        report = export(
            store,
            snapshot_id,
            key,
            os.path.expanduser(options.output),
            format=options.format,
            only=options.only,
            progress=progress,
        )
    if options.json:
        print_json(asdict(report))
        return 0
    console = console_for_people()
    for file in report.files:
        console.print(f"Wrote {file}")
    console.print(f"{format_bytes(report.bytes_written)} in all")
    for note in report.notes:
        console.print(f"  {note}")
    return 0


# --------------------------------------------------------------------------- gc and delete


def _collect(options: argparse.Namespace) -> int:
    from .cli import console_for_people, print_json

    store = _open(options)
    freed = store.collect_garbage()
    if options.json:
        print_json({"freed_bytes": freed})
    else:
        console_for_people().print(f"{format_bytes(freed)} freed in {store.shown}")
    return 0


def _delete(options: argparse.Namespace) -> int:
    from .cli import console_for_people, print_json

    store = _open(options)
    ids = list(dict.fromkeys(store.find(wanted) for wanted in options.snapshot))
    if not options.yes and not options.json and sys.stdin.isatty():
        names = {info.snapshot_id: info.name for info in store.list()}
        listed = ", ".join(f"{names[i]} ({i})" for i in ids)
        if input(f"Delete {listed}? [y/N] ").strip().lower() not in ("y", "yes"):
            return 1
    for snapshot_id in ids:
        store.delete(snapshot_id)
    if options.json:
        print_json({"deleted": ids})
    else:
        console_for_people().print(f"Deleted {', '.join(ids)}")
    return 0

"""What the fresh process of `verify` does: load a snapshot, pickle it again, compare both."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...errors import SnapshotError
from .. import tensors
from ..capture import Header, Prepared, longest_stream, prepare
from ..grouping import Key
from ..restore import restore
from ..stores import SnapshotStore
from ..streams import Stream
from .compare import Comparison, Side
from .graph import class_number
from .nodes import Call, Global
from .opened import Opened, Progress
from .report import VerifiedVariable
from .symbolic import read_stream

_SHELL = b"Rebuild.shell"
_SETS = (set, frozenset)


@dataclass(frozen=True, slots=True)
class Findings:
    """What loading and pickling again brought to light."""

    variables: tuple[VerifiedVariable, ...]
    problems: tuple[str, ...]
    differences: tuple[str, ...]


def recheck(
    store: SnapshotStore, snapshot_id: str, key: bytes, progress: Progress | None = None
) -> Findings:
    """Load a snapshot into an empty ``__main__`` of this process, pickle it again and compare.

    Memory of GPUs is loaded into the host's, so that no GPU is needed.
    """
    opened = Opened(store, snapshot_id, key)
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    namespace = vars(main)
    _stay_on_host()
    if any(_SHELL in bytes(opened.read(group)) for group in opened.manifest["groups"]):
        _make_shell(main)
    own = set(namespace)
    loaded = restore(store, snapshot_id, key, namespace, check=True, progress=progress)
    reports = {variable.name: variable for variable in loaded.variables}
    lost = [v.name for v in loaded.variables if v.status == "tombstone"]
    hidden = {*own, *lost, *(namespace.keys() - reports.keys())}
    header = Header("verification", 0.0, "", None, {})
    make_stream = partial(Stream, bound=longest_stream())
    again = prepare(namespace, header, hidden, loaded.extra, digests=False, make_stream=make_stream)
    faults = _compare(opened, again)
    variables, problems = [], [f"{entry} could not be loaded" for entry in loaded.not_restored]
    for name, saved in opened.variables.items():
        status, reason = "same", faults.get(("var", name))
        report = reports[name]
        if saved["status"] == "tombstone":
            status, reason = "not saved", saved["reason"]
        elif report.status == "tombstone":
            status, reason = "not loaded", report.reason
        elif report.status == "mismatch":
            status, reason = "differs", reason or report.reason
        elif reason is not None:
            status = "differs"
        variables.append(VerifiedVariable(name, saved["type_name"], status, reason))
    # The names of extra entries are those of all there were, also of what could not be saved.
    passed = ("var", "class", "entries")
    problems += [text for key_, text in faults.items() if key_[0] not in passed]
    return Findings(tuple(variables), tuple(problems), loaded.differences)


def _stay_on_host() -> None:
    def on_host(storage: Any, device: str) -> Any:
        return storage

    tensors._on_device = on_host


def _make_shell(main: types.ModuleType) -> None:
    """Start a shell without history, for variables that refer to the session's own."""
    try:
        from IPython.core.interactiveshell import InteractiveShell
        from traitlets.config import Config
    except ImportError:
        return  # their streams fail and say so
    config = Config()
    config.HistoryManager.enabled = False
    config.HistoryManager.hist_file = ":memory:"
    InteractiveShell.instance(config=config, user_module=main, user_ns=vars(main))


def _compare(opened: Opened, again: Prepared) -> dict[Key, str]:
    """Return what differs by key; streams that are equal to the last byte are not taken apart."""
    sources = again.sources
    faults: dict[Key, str] = {
        key: f"it could not be saved again: {failure.reason}"
        for key, failure in again.plan.failures.items()
    }
    specs = {i: {"index": i, **s.spec, "nbytes": s.nbytes} for i, s in sources.items()}

    def same_memory(first: int, second: int) -> bool:
        return opened.holds(opened.buffers[first], sources[second].read())

    streams = {tuple(g.keys): (g.stream.getvalue(), g) for g in again.plan.groups}
    equal: list[Mapping[str, Any]] = []
    old: dict[Key, Any] = {}
    new: dict[Key, Any] = {}
    apart: list[Key] = []
    for number, group in enumerate(opened.manifest["groups"]):
        keys = tuple(tuple(key) for key in group["keys"])
        stream, other = streams.get(keys, (b"", None))
        same = (
            other is not None
            and (group["nbytes"], group["out_of_band"]) == (len(stream), other.out_of_band)
            and opened.read(group) == stream
        )
        if same:
            equal.append(group)
        else:
            apart.extend(keys)
        if not same or any(key[0] == "class" for key in keys):
            _read(faults, keys, partial(opened.values, number), old)
    for keys, (stream, other) in streams.items():
        if any(key in apart or key[0] == "class" for key in keys):
            _read(faults, keys, partial(_values, stream, other.out_of_band), new)
    comparison = Comparison(
        Side(opened.buffers, _classes(old)),
        Side(specs, _classes(new)),
        same_memory,
        partial(_is_set, again.context.classes),
    )
    for group in equal:
        difference = comparison.same_numbers(group["buffers"], group["classes"])
        if difference is not None:
            faults.update(dict.fromkeys(map(tuple, group["keys"]), difference))
    for key in apart:
        if key in old and key in new:
            difference = comparison.compare(old[key], new[key], key[1])
            if difference is not None:
                faults.setdefault(key, difference)
    return faults


def _values(stream: bytes, out_of_band: list[int]) -> list[Any]:
    return read_stream(stream, buffers=out_of_band)[0][1:]


def _read(
    faults: dict[Key, str],
    keys: tuple[Key, ...],
    read: Callable[[], list[Any]],
    into: dict[Key, Any],
) -> None:
    try:
        into.update(zip(keys, read(), strict=True))
    except SnapshotError as error:
        faults.update(dict.fromkeys(keys, f"it could not be compared: {error}"))


def _classes(values: Mapping[Key, Any]) -> dict[int, Any]:
    return {int(key[1]): value for key, value in values.items() if key[0] == "class"}


def _is_set(classes: list[type], value: Any) -> bool:
    """Tell whether a class is a kind of set; it has been imported or made when asked for."""
    found: Any = None
    if type(value) is Global:
        found = sys.modules.get(value.module)
        for part in value.name.split("."):
            found = getattr(found, part, None)
    elif type(value) is Call:
        number = class_number(value)
        found = classes[number] if number is not None and number < len(classes) else None
    if not isinstance(found, type):
        return False
    return issubclass(found, _SETS) or found.__module__ in ("weakref", "_weakrefset")

"""A kernel's state to and from a snapshot."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core.retention import LAST, latest
from ..errors import NotFoundError, RefusedError
from ..snapshots.background import BackgroundCapture, begin_capture
from ..snapshots.capture import capture
from ..snapshots.omission import Choose
from ..snapshots.outside import apply_outside, capture_outside
from ..snapshots.report import CaptureReport, RestoreReport
from ..snapshots.restore import restore
from ..snapshots.signing import load_or_create_key
from ..snapshots.stores import SnapshotStore, open_store
from ..snapshots.tombstone import Tombstone
from .lending import borrowed_dill
from .recompute import Recomputed, adopt_records, recompute, records_for_snapshot

if TYPE_CHECKING:
    from .agent import Agent
    from .messages import RestoreRequest, SnapshotRequest

KEPT_OUTPUTS = 100
"""So many of the latest outputs go into a snapshot, "Out" in a kernel."""

OUTPUT_BYTES = 1 << 20
"""Larger outputs are left out unless a variable holds them too."""

_IPYTHON_NAMES = re.compile(r"_{1,3}|_i{1,3}|_\d+|_i\d+|_ih|_oh|_dh|In|Out")
_MISSING = object()

Progress = Callable[[int, int], None]
Cancelled = Callable[[], bool]


def user_names(shell: Any) -> list[str]:
    """Return the names of the user's own variables."""
    hidden = shell.user_ns_hidden
    return [
        name
        for name, value in shell.user_ns.items()
        # A user who binds a name of IPython's anew makes it their own.
        if hidden.get(name, _MISSING) is not value and not _IPYTHON_NAMES.fullmatch(name)
    ]


_stores: dict[str, SnapshotStore] = {}


def store_at(where: str) -> SnapshotStore:
    """Return the store at a path or URL, the same one each time: it knows what it has read."""
    if where not in _stores:
        _stores[where] = open_store(where)
    return _stores[where]


# --------------------------------------------------------------------------- saving


def save_state(
    agent: Agent,
    request: SnapshotRequest,
    *,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> dict[str, Any]:
    """Save the session, with `request.move` wholly or not at all.

    Raises
    ------
    RefusedError
        If the state is to move and something of it cannot, by name.
    SnapshotCancelledError
        If `cancelled` said so; nothing was saved.
    """
    store, what = store_at(request.folder), _what(agent, request)
    omitter = agent.saves.omitter
    choose: Choose | None = None
    if agent.config.recompute and not request.move:
        choose = partial(
            omitter.choose, agent.shell.user_ns, request.folder, what["extra"]["cells"]
        )
    with borrowed_dill(agent.config.dill_dir):
        report = capture(
            agent.shell.user_ns,
            store,
            load_or_create_key(request.key_path),
            progress=progress,
            cancelled=cancelled,
            choose=choose,
            **what,
        )
    omitter.saved(request.folder, report)
    if request.move:
        lost = [f"{v.name} ({v.type_name}): {v.reason}" for v in report.variables
                if v.status != "saved"]  # fmt: skip
        lost += report.not_saved
        if lost:
            store.delete(report.snapshot_id)
            raise RefusedError(_cannot_move(agent, lost))
    return saved_model(report, what["extra"].get("not carried", ()))


def begin_save(agent: Agent, request: SnapshotRequest) -> tuple[BackgroundCapture, list[str]]:
    """Catch the state as it is now and let another process write it; also return what stays."""
    what = _what(agent, request)
    with borrowed_dill(agent.config.dill_dir):
        background = begin_capture(
            agent.shell.user_ns,
            store_at(request.folder),
            load_or_create_key(request.key_path),
            **what,
        )
    return background, list(what["extra"].get("not carried", ()))


def saved_model(report: CaptureReport, not_carried: Collection[str]) -> dict[str, Any]:
    """Return the report of a save as plain data."""
    notes = [f"{v.name}: {v.reason}" for v in report.variables if v.reason]
    notes += report.not_saved
    return {
        "snapshot_id": report.snapshot_id,
        "name": report.name,
        "variables": [asdict(v) for v in report.variables],
        "notes": [*notes, *(f"not carried: {text}" for text in not_carried)],
        "bytes_written": report.bytes_written,
        "seconds": report.seconds,
    }


def _what(agent: Agent, request: SnapshotRequest) -> dict[str, Any]:
    """Return what is to be saved, as keywords of `capture`."""
    shell = agent.shell
    names = set(user_names(shell))
    outside, refusals = capture_outside(shell, agent.environ_at_start)
    if request.move and refusals:
        raise RefusedError(_cannot_move(agent, refusals))
    if not request.move:
        variables = [shell.user_ns[n] for n in names]
        outside["outputs"] = _bounded(outside["outputs"], variables)
        outside["recent outputs"] = {
            name: value if _fits(value, variables) else ""
            for name, value in outside["recent outputs"].items()
        }
        outside["not carried"] = refusals
    outside["session"] = agent.session_id
    outside["cells"] = records_for_snapshot(agent)
    outside["sightings"] = agent.saves.omitter.sightings.plain()
    return {
        "name": request.name,
        "now_s": time.time(),
        "kernel_id": agent.config.kernel_id,
        "notebook": request.notebook,
        "hidden": [n for n in shell.user_ns if n not in names],
        "extra": outside,
        "digests": request.move,
        "labels": {"reason": request.cause, "automatic": request.cause != "asked"},
    }


def _bounded(outputs: Mapping[int, Any], variables: list[Any]) -> dict[int, Any]:
    recent = sorted(outputs)[-KEPT_OUTPUTS:]
    return {n: outputs[n] for n in recent if _fits(outputs[n], variables)}


def _fits(value: Any, variables: list[Any]) -> bool:
    """Whether an output costs little, or nothing beyond the variable that it is."""
    if any(value is variable for variable in variables):
        return True
    try:
        for name, unit in (("nbytes", 1), ("size", 8)):
            count = getattr(value, name, None)
            if isinstance(count, int):
                return count * unit <= OUTPUT_BYTES
        if isinstance(value, str | bytes | bytearray):
            return len(value) <= OUTPUT_BYTES
        return not isinstance(value, list | tuple | dict | set) or len(value) <= OUTPUT_BYTES // 64
    except Exception:
        return False  # an object of the user's that cannot even be looked at


# --------------------------------------------------------------------------- loading


def load_state(
    agent: Agent,
    request: RestoreRequest,
    *,
    in_cell: bool = False,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> dict[str, Any]:
    """Load a snapshot; the signature is checked before anything is unpickled.

    Besides the variables it brings back what is outside of them: random generators, settings,
    working directory, and inputs and outputs where this session has run less than the saved one.
    With `request.only` it loads those variables and nothing else. `in_cell` says that a cell asks.

    Raises
    ------
    RefusedError
        If the state is to move and something of it did not arrive, by name.
    SnapshotCancelledError
        If `cancelled` said so; the namespace is as it was.
    """
    shell = agent.shell
    store = store_at(request.folder)
    before = dict(shell.user_ns) if request.only else {}
    with borrowed_dill(agent.config.dill_dir):
        report = restore(
            store,
            request.snapshot_id,
            load_or_create_key(request.key_path),
            shell.user_ns,
            only=list(request.only) or None,
            check=request.move,
            with_cells=True,
            progress=progress,
            cancelled=cancelled,
        )
    agent.saves.omitter.loaded(request.folder, report)
    if request.move:
        faults = [*report.not_restored, *apply_outside(shell, report.extra)]
        if faults:
            raise RefusedError(_cannot_move(agent, faults))
        agent.session_id = report.extra.get("session", agent.session_id)
        adopt_records(agent, report, report.extra.get("cells", ()))
        return _loaded_model(report, [])
    if request.only:
        return _only(agent, request, report, before)
    notes = list(report.not_restored)
    continues = _continues(agent, report.extra)
    outside = _joined(shell, report.extra, in_cell=in_cell) if continues else report.extra
    notes += apply_outside(shell, outside, history=continues)
    # After what is outside: cells may depend on the environment or on a library's settings.
    again = _made_again(agent, report, request)
    adopt_records(agent, report, report.extra.get("cells", ()), again)
    last = max((run["number"] for run in report.extra.get("cells", ())), default=0)
    agent.saves.omitter.sightings.adopt(report.extra.get("sightings", ()), last)
    agent.offer = None
    notes += [f"not carried: {text}" for text in report.extra.get("not carried", ())]
    return _loaded_model(report, notes, again)


def _only(
    agent: Agent, request: RestoreRequest, report: RestoreReport, before: Mapping[str, Any]
) -> dict[str, Any]:
    """Make again what of the chosen variables was left out; `before` is the namespace before all.

    What is there only because their cells need it goes again.
    """
    namespace = agent.shell.user_ns
    helping = [v.name for v in report.variables if v.name not in request.only]
    try:
        again = _made_again(agent, report, request)
    finally:
        for name in helping:
            namespace.pop(name, None)
            if name in before:
                namespace[name] = before[name]
    chosen = tuple(v for v in report.variables if v.name in request.only)
    return _loaded_model(replace(report, variables=chosen), [], again)


def _made_again(agent: Agent, report: RestoreReport, request: RestoreRequest) -> list[Recomputed]:
    """Run cells again for what was not restored, as far as that is asked for.

    What was left out is made again in any case: that is why it was.
    """
    if not (request.recompute or report.left_out):
        return []
    wanted = (request.only or None) if request.recompute else report.left_out
    again = recompute(agent, report, report.extra.get("cells", ()), wanted)
    _tell_on_tombstones(agent.shell.user_ns, report, again)
    return again


def _tell_on_tombstones(
    namespace: dict[str, Any], report: RestoreReport, again: Collection[Recomputed]
) -> None:
    """Let the tombstone of what was left out say why it could not be made again."""
    outcomes = {o.name: o for o in again if o.status != "recomputed"}
    for variable in report.variables:
        outcome = outcomes.get(variable.name)
        if outcome is not None and variable.name in report.left_out:
            reason = _in_vain(variable.reason, outcome)
            namespace[variable.name] = Tombstone(variable.name, variable.type_name, reason)


def _in_vain(reason: str | None, outcome: Recomputed) -> str:
    return f"{reason}; its cells cannot help: {outcome.reason}"


def _loaded_model(
    report: RestoreReport, notes: list[str], again: Collection[Recomputed] = ()
) -> dict[str, Any]:
    outcomes = {o.name: o for o in again}
    return {
        "snapshot_id": report.snapshot_id,
        "name": report.name,
        "variables": [_variable(asdict(v), outcomes.get(v.name)) for v in report.variables],
        "differences": list(report.differences),
        "notes": notes,
        "bytes_read": report.bytes_read,
        "seconds": report.seconds,
    }


def _variable(model: dict[str, Any], outcome: Recomputed | None) -> dict[str, Any]:
    """Return what became of a variable, whose cells may have been run again."""
    if outcome is None:
        return model
    if outcome.status == "recomputed":
        how = f"its cells were run again ({outcome.seconds:.2g} s)"
        reason = "; ".join(filter(None, (how, outcome.reason)))
        return {**model, "status": "recomputed", "reason": reason, "digest": outcome.digest}
    return {**model, "reason": _in_vain(model["reason"], outcome)}


def _continues(agent: Agent, extra: Mapping[str, Any]) -> bool:
    """Whether this session goes on where the saved one ended.

    It does after a kernel has died, and where it has not run more cells itself. Within one session
    a restore is an undo, and its inputs and outputs are longer by now.
    """
    saved_count = extra.get("shell", {}).get("execution count", 0)
    other = extra.get("session") != agent.session_id
    fresh = agent.offer is not None or agent.shell.execution_count <= saved_count
    return bool(other and fresh)


def _joined(shell: Any, extra: Mapping[str, Any], *, in_cell: bool) -> dict[str, Any]:
    """Return the saved state with inputs that go on with those of this session.

    What this session has run beyond the length of the saved one stays, the running cell in any
    case, and the count fits the inputs. The database of inputs goes on under this session's number:
    the saved session may have written more lines to it than the snapshot knows.
    """
    own = dict(extra["shell"])
    history = shell.history_manager
    # IPython counts a cell before or after it has run, depending on its version.
    ahead = shell.execution_count - len(history.input_hist_raw)
    for name, present in (
        ("raw inputs", history.input_hist_raw),
        ("parsed inputs", history.input_hist_parsed),
    ):
        saved = list(own[name])
        added = list(present[len(saved) :])
        if in_cell and not added:
            added = list(present[-1:])
        own[name] = saved + added
    own["execution count"] = len(own["raw inputs"]) + ahead
    own["session number"] = 0
    return {**extra, "shell": own}


# --------------------------------------------------------------------------- finding


def find_snapshot(agent: Agent, wanted: str) -> str:
    """Return the id of the snapshot of that name or id; `LAST` is the latest one of this kernel.

    After a kernel has died it is the latest one of before that, until one was restored.

    Raises
    ------
    NotFoundError
        If there is none.
    """
    config, offer = agent.config, agent.offer
    store = store_at(config.snapshot_folder)
    if wanted != LAST:
        return store.find(wanted, kernel_id=config.kernel_id)
    # What was still being written when the kernel died may be there by now.
    before_s = math.inf if offer is None else float(offer["died_s"])
    sound = (s for s in store.list() if s.verified is not False)
    found = latest(sound, config.kernel_id, config.notebook, before_s)
    if found is None:
        raise NotFoundError("this kernel has no snapshot yet; `%gpu snapshots` lists all")
    return found.snapshot_id


def _cannot_move(agent: Agent, what: Any) -> str:
    return (
        f"kernel {agent.config.kernel_id} cannot move to another process without losing "
        f"something, so it stays where it is: {'; '.join(what)}"
    )

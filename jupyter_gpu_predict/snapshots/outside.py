"""The part of a session that is not in its namespace: process, shell, history, settings."""

from __future__ import annotations

import importlib
import linecache
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from .quiet import is_own, origin_module
from .settings import apply_settings, capture_settings
from .ties import ties

PROCESS_VARIABLES = frozenset(
    {
        "CUDA_VISIBLE_DEVICES",
        "JPY_PARENT_PID",
        "JPY_SESSION_NAME",
        "NVIDIA_VISIBLE_DEVICES",
        "PYDEVD_USE_FRAME_EVAL",
    }
)
"""Environment variables that belong to the process or its lease and never move with a session."""

_UNDERSCORES = ("_", "__", "___")
_INPUTS = ("_i00", "_i", "_ii", "_iii")


def capture_outside(
    shell: Any,
    environ_baseline: Mapping[str, str] | None = None,
    *,
    max_outputs: int | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Return the session's state outside its namespace, and what of it cannot be carried.

    To be called where cells run (same thread, same context variables), between cells.

    Parameters
    ----------
    shell
        The ``InteractiveShell``.
    environ_baseline
        The environment against which changes are noted; by default the one this process was
        started with.
    max_outputs
        Keep only so many of the last values in ``Out``; by default all.

    Returns
    -------
    state
        Dictionaries by part, made to be given to `capture` as ``extra``.
    refusals
        A sentence for each thing that would be lost, such as open comms or child processes.
    """
    history, hook = shell.history_manager, shell.displayhook
    history.writeout_cache()
    settings, faults = capture_settings()
    state: dict[str, Any] = {
        "process": _process(environ_baseline),
        "shell": {
            "execution count": shell.execution_count,
            "session number": history.session_number,
            "raw inputs": list(history.input_hist_raw),
            "parsed inputs": list(history.input_hist_parsed),
            "recent inputs": [getattr(history, name, "") for name in _INPUTS],
            "folders": [str(folder) for folder in history.dir_hist],
            "output texts": dict(history.output_hist_reprs),
            "extensions": sorted(shell.extension_manager.loaded),
            "aliases": dict(shell.alias_manager.aliases),
            "sources": _sources(shell),
        },
        "outputs": _outputs(history, max_outputs),
        "recent outputs": {name: getattr(hook, name, "") for name in _UNDERSCORES},
        "magics": _magics(shell),
        "settings": settings,
    }
    return state, ties(shell) + faults


def apply_outside(shell: Any, state: Mapping[str, Any], *, history: bool = True) -> list[str]:
    """Give a shell what `capture_outside` returned and return what could not be set.

    Parameters
    ----------
    history
        Also continue inputs, outputs, the execution count and the history session; not wanted
        when a snapshot is restored into a session that has a history of its own.
    """
    faults: list[str] = []

    def attempt(what: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            faults.append(f"{what} could not be restored: {type(error).__name__}: {error}")

    process, own = state.get("process", {}), state.get("shell", {})
    if process:
        if process["cwd"] is not None:
            attempt("the working directory", lambda: os.chdir(process["cwd"]))
        attempt("the environment", lambda: _set_environment(process))
        attempt("sys.path", lambda: _set_path(process["sys path"]))
    for name in own.get("extensions", ()):
        if name not in shell.extension_manager.loaded:
            attempt(f"extension {name}", partial(_load_extension, shell, name))
    for name, target in own.get("aliases", {}).items():
        if (name, target) not in shell.alias_manager.aliases:
            attempt(f"alias {name}", partial(_set_alias, shell, name, target))
    for key, magic in state.get("magics", {}).items():
        attempt(f"magic {key}", partial(_set_magic, shell, key, magic))
    faults += apply_settings(state.get("settings", {}))
    if own:
        attempt("the sources of cells", lambda: _set_sources(shell, own["sources"]))
    if history and own:
        attempt("inputs and outputs", lambda: _set_history(shell, own, state))
        attempt("the history session", lambda: _set_session(shell, own["session number"]))
    return faults


def _outputs(history: Any, limit: int | None) -> dict[int, Any]:
    numbers = sorted(history.output_hist)
    kept = numbers if limit is None else numbers[len(numbers) - min(limit, len(numbers)) :]
    return {number: history.output_hist[number] for number in kept}


def _process(baseline: Mapping[str, str] | None) -> dict[str, Any]:
    before = _started_with() if baseline is None else dict(baseline)
    now = dict(os.environ)
    changed = {k: v for k, v in now.items() if before.get(k) != v and k not in PROCESS_VARIABLES}
    removed = sorted(k for k in before if k not in now and k not in PROCESS_VARIABLES)
    return {
        "cwd": _working_directory(),
        "environment set": changed,
        "environment removed": removed,
        "sys path": [p for p in sys.path if isinstance(p, str)],
    }


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None  # it has been removed


def _started_with() -> dict[str, str]:
    text = os.fsdecode(Path("/proc/self/environ").read_bytes())
    return dict(item.split("=", 1) for item in text.split("\0") if "=" in item)


def _set_environment(process: Mapping[str, Any]) -> None:
    os.environ.update(process["environment set"])
    for name in process["environment removed"]:
        os.environ.pop(name, None)


def _set_path(saved: list[str]) -> None:
    here = [p for p in sys.path if p not in saved]
    sys.path[:] = [*saved, *here]
    importlib.invalidate_caches()


def _load_extension(shell: Any, name: str) -> None:
    if shell.extension_manager.load_extension(name) == "no load function":
        raise ImportError(f"{name} is no extension here")


def _set_alias(shell: Any, name: str, target: str) -> None:
    shell.alias_manager.soft_define_alias(name, target)


def _magics(shell: Any) -> dict[str, Any]:
    manager, found = shell.magics_manager, {}
    extensions = {name.partition(".")[0] for name in shell.extension_manager.loaded}
    for kind in ("line", "cell"):
        for name, function in manager.magics[kind].items():
            module = origin_module(function)
            if is_own(module) or module.partition(".")[0] in extensions:
                continue
            owner = getattr(function, "__self__", None)
            if owner is not None and type(owner).__name__ in manager.registry:
                found[f"class:{type(owner).__name__}"] = type(owner)
            elif type(function).__name__ != "Alias":
                found[f"{kind}:{name}"] = function
    return found


def _set_magic(shell: Any, key: str, magic: Any) -> None:
    kind, _, name = key.partition(":")
    if kind == "class":
        shell.register_magics(magic)
    else:
        shell.register_magic_function(magic, magic_kind=kind, magic_name=name)


def _sources(shell: Any) -> dict[str, Any]:
    """Return the source lines of cells, which tracebacks and ``inspect.getsource`` read."""
    numbers = getattr(shell.compile, "_filename_map", {})
    return {
        name: (numbers[name], linecache.cache[name])
        for name in numbers
        if len(linecache.cache.get(name, ())) == 4
    }


def _set_sources(shell: Any, sources: Mapping[str, Any]) -> None:
    numbers = getattr(shell.compile, "_filename_map", {})
    for name, (number, entry) in sources.items():
        linecache.cache[name] = tuple(entry)
        numbers[name] = number
        # IPython puts its entries back from here after `linecache.checkcache`.
        getattr(linecache, "_ipython_cache", {})[name] = tuple(entry)


def _set_history(shell: Any, own: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    manager, hook = shell.history_manager, shell.displayhook
    manager.input_hist_raw[:] = own["raw inputs"]
    manager.input_hist_parsed[:] = own["parsed inputs"]
    manager.dir_hist[:] = [Path(folder) for folder in own["folders"]]
    manager.output_hist_reprs.update(own["output texts"])
    outputs = state.get("outputs", {})
    manager.output_hist.update(outputs)
    shell.execution_count = own["execution count"]
    names: dict[str, Any] = {f"_{number}": value for number, value in outputs.items()}
    names.update({f"_i{n}": text for n, text in enumerate(own["raw inputs"]) if n})
    for name, text in zip(_INPUTS, own["recent inputs"], strict=True):
        setattr(manager, name, text)
        if name != "_i00":
            names[name] = text
    for name, value in state.get("recent outputs", {}).items():
        setattr(hook, name, value)
        names[name] = value
    shell.push(names, interactive=False)


def _set_session(shell: Any, number: int) -> None:
    """Let the history of this process be written under the number of the saved session."""
    manager = shell.history_manager
    manager.writeout_cache()
    if not manager.enabled or number in (0, manager.session_number):
        return
    with manager.db:
        manager.db.execute("DELETE FROM sessions WHERE session=?", (manager.session_number,))
    manager.session_number = number

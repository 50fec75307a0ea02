"""Settings and random generators that libraries keep outside the namespace."""

from __future__ import annotations

import locale
import random
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from .buffers import loaded
from .quiet import is_own

_CUDNN_FLAGS = ("enabled", "benchmark", "deterministic")


def capture_settings() -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the settings of the loaded libraries by part, and what could not be read."""
    faults: list[str] = []
    parts: dict[str, dict[str, Any]] = {
        "python": {
            "random": random.getstate(),
            "warnings": list(warnings.filters),
            "recursion limit": sys.getrecursionlimit(),
            "locale": locale.setlocale(locale.LC_ALL),
        }
    }
    for module, capture, _ in _LIBRARIES:
        library = loaded(module)
        if library is not None:
            read = partial(capture, library)
            faults += _attempt(f"settings of {module} could not be read", read, parts, module)
    return parts, faults


def apply_settings(state: dict[str, Any]) -> list[str]:
    """Set what `capture_settings` returned and return a sentence for each part that failed."""
    faults: list[str] = []
    own = state.get("python", {})
    setters: list[tuple[str, Callable[[Any], Any]]] = [
        ("random", random.setstate),
        ("recursion limit", sys.setrecursionlimit),
        ("warnings", _set_warnings),
        ("locale", _set_locale),
    ]
    setters += [(module, apply) for module, _, apply in _LIBRARIES]
    for name, setter in setters:
        value = own.get(name, state.get(name))
        if value is not None:
            faults += _attempt(f"settings of {name} could not be restored", partial(setter, value))
    return faults


def _attempt(
    fault: str, action: Callable[[], Any], results: dict[str, Any] | None = None, key: str = ""
) -> list[str]:
    try:
        result = action()
    except Exception as error:
        return [f"{fault}: {type(error).__name__}: {error}"]
    if results is not None:
        results[key] = result
    return []


def _set_warnings(filters: list[Any]) -> None:
    warnings.resetwarnings()
    warnings.filters.extend(filters)  # type: ignore[attr-defined]


def _set_locale(value: str) -> None:
    if locale.setlocale(locale.LC_ALL) != value:
        locale.setlocale(locale.LC_ALL, value)


def _capture_decimal(decimal: Any) -> dict[str, Any]:
    return {"context": decimal.getcontext().copy()}


def _apply_decimal(state: dict[str, Any]) -> None:
    import decimal

    decimal.setcontext(state["context"])


def _capture_logging(logging: Any) -> dict[str, Any]:
    kinds = (logging.StreamHandler, logging.FileHandler)
    found = {}
    for name, logger in [("", logging.root), *logging.root.manager.loggerDict.items()]:
        if not isinstance(logger, logging.Logger) or is_own(name) or name == "IPKernelApp":
            continue
        own = (logger.level, logger.propagate, logger.disabled)
        handlers = [h for h in logger.handlers if type(h) in kinds and _travels(logging, h)]
        if own != (logging.NOTSET, True, False) or handlers:
            found[name] = (*own, handlers)
    return {"loggers": found}


def _travels(logging: Any, handler: Any) -> bool:
    """Tell whether a handler writes to a file or to what every process has."""
    standard = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return isinstance(handler, logging.FileHandler) or handler.stream in standard


def _apply_logging(state: dict[str, Any]) -> None:
    import logging

    for name, (level, propagate, disabled, handlers) in state["loggers"].items():
        logger = logging.getLogger(name or None)
        logger.setLevel(level)
        logger.propagate, logger.disabled = propagate, disabled
        streams = [getattr(h, "stream", None) for h in logger.handlers]
        for handler in handlers:
            # A library or the kernel may have put its own one there already.
            if handler.stream is None or handler.stream not in streams:
                logger.addHandler(handler)


def _capture_numpy(numpy: Any) -> dict[str, Any]:
    return {
        "random": numpy.random.get_state(legacy=False),
        "errors": numpy.geterr(),
        "print": {k: v for k, v in numpy.get_printoptions().items() if k != "override_repr"},
    }


def _apply_numpy(state: dict[str, Any]) -> None:
    import numpy as np

    np.random.set_state(state["random"])
    np.seterr(**state["errors"])
    np.set_printoptions(**state["print"])


def _capture_pandas(pandas: Any) -> dict[str, Any]:
    # There is no public list of all options and their defaults.
    config = pandas._config.config
    values: dict[str, Any] = {}
    waiting = [("", config._global_config)]
    while waiting:
        prefix, branch = waiting.pop()
        for key, value in branch.items():
            if isinstance(value, dict):
                waiting.append((f"{prefix}{key}.", value))
            elif value != config._registered_options[f"{prefix}{key}"].defval:
                values[f"{prefix}{key}"] = value
    return {"options": values}


def _apply_pandas(state: dict[str, Any]) -> None:
    import pandas as pd

    for key, value in state["options"].items():
        pd.set_option(key, value)


def _capture_matplotlib(matplotlib: Any) -> dict[str, Any]:
    # Read past the mapping's own access, which would choose a backend.
    current, default = dict.items(matplotlib.rcParams), matplotlib.rcParamsDefault
    changed = {k: v for k, v in current if k != "backend" and dict.get(default, k) != v}
    backend = dict.__getitem__(matplotlib.rcParams, "backend")
    return {"changed": changed, "backend": backend if isinstance(backend, str) else None}


def _apply_matplotlib(state: dict[str, Any]) -> None:
    import matplotlib as mpl

    mpl.rcParams.update(state["changed"])
    backend = state["backend"]
    if backend is not None and dict.__getitem__(mpl.rcParams, "backend") != backend:
        mpl.use(backend)


def _capture_torch(torch: Any) -> dict[str, Any]:
    cudnn = torch.backends.cudnn
    return {
        "random": torch.get_rng_state().numpy().tobytes(),
        "device random": _device_random(torch),
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "anomaly": torch.is_anomaly_enabled(),
        "cudnn": {name: getattr(cudnn, name) for name in _CUDNN_FLAGS},
        "print": dict(vars(torch._tensor_str.PRINT_OPTS)),
        # Hooks are kept under running numbers; a number given twice would replace a hook.
        "next hook": torch.utils.hooks.RemovableHandle.next_id,
    }


def _apply_torch(state: dict[str, Any]) -> None:
    import torch

    torch.set_rng_state(_byte_tensor(torch, state["random"]))
    for kind, states in state.get("device random", {}).items():
        _set_device_random(torch, kind, states)
    torch.set_default_dtype(getattr(torch, state["dtype"].removeprefix("torch.")))
    if str(torch.get_default_device()) != state["device"]:
        torch.set_default_device(state["device"])
    torch.set_num_threads(state["threads"])
    torch.set_grad_enabled(state["grad"])
    torch.use_deterministic_algorithms(state["deterministic"], warn_only=state["warn only"])
    torch.set_float32_matmul_precision(state["precision"])
    torch.autograd.set_detect_anomaly(state["anomaly"])
    for name, value in state["cudnn"].items():
        setattr(torch.backends.cudnn, name, value)
    vars(torch._tensor_str.PRINT_OPTS).update(state["print"])
    handle = torch.utils.hooks.RemovableHandle
    handle.next_id = max(handle.next_id, state["next hook"])


def _device_random(torch: Any) -> dict[str, list[bytes]]:
    """Return the generators' states of each type of device that this process has used."""
    accelerators = getattr(torch, "accelerator", None)
    current = None if accelerators is None else accelerators.current_accelerator()
    found = {}
    for kind in {"cuda", *([] if current is None else [current.type])}:
        module: Any = getattr(torch, kind, None)
        in_use = getattr(module, "is_initialized", getattr(module, "is_available", None))
        if in_use is None or not in_use():
            continue
        if hasattr(module, "get_rng_state_all"):
            found[kind] = [s.numpy().tobytes() for s in module.get_rng_state_all()]
        elif hasattr(module, "get_rng_state"):
            found[kind] = [module.get_rng_state().numpy().tobytes()]
    return found


def _set_device_random(torch: Any, kind: str, states: list[bytes]) -> None:
    """Set the generators of as many devices of a type as there are here."""
    module: Any = getattr(torch, kind, None)
    if module is None or not module.is_available():
        return
    tensors = [_byte_tensor(torch, state) for state in states]
    if hasattr(module, "set_rng_state_all"):
        for index, tensor in enumerate(tensors[: module.device_count()]):
            module.set_rng_state(tensor, index)
    else:
        module.set_rng_state(tensors[0])


def _byte_tensor(torch: Any, data: bytes) -> Any:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


_LIBRARIES: tuple[
    tuple[str, Callable[[Any], dict[str, Any]], Callable[[dict[str, Any]], None]], ...
]
_LIBRARIES = (
    ("decimal", _capture_decimal, _apply_decimal),
    ("logging", _capture_logging, _apply_logging),
    ("numpy", _capture_numpy, _apply_numpy),
    ("pandas", _capture_pandas, _apply_pandas),
    ("matplotlib", _capture_matplotlib, _apply_matplotlib),
    ("torch", _capture_torch, _apply_torch),
)

"""torch modules and loaders whose own pickling refuses or loses something."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pickling import SnapshotPickler


def find_module_handler(torch: Any, kind: type) -> Callable[[SnapshotPickler, Any], Any] | None:
    """Return what reduces instances of `kind`, or ``None`` if torch does it well itself."""
    if issubclass(kind, torch.nn.Module):
        if kind.__name__.startswith("Parametrized") and len(kind.__bases__) == 1:
            return _reduce_parametrized
        if issubclass(kind, torch.jit.ScriptModule):
            return _reduce_script
    if issubclass(kind, torch.jit.ScriptFunction):
        return _reduce_script
    if kind in (torch.finfo, torch.iinfo):
        return _reduce_limits
    loader = torch.utils.data.dataloader
    if issubclass(kind, loader._BaseDataLoaderIter):
        return _refuse_iteration
    return None


def _reduce_parametrized(pickler: SnapshotPickler, module: Any) -> Any:
    """Reduce a parametrized module, for which torch makes a class of its own each time."""
    base = type(module).__bases__[0]
    names = list(vars(module)["_modules"]["parametrizations"])
    fill = RebuildModules.fill_module_dict
    return RebuildModules.parametrized, (base, names), dict(vars(module)), None, None, fill


def _reduce_script(pickler: SnapshotPickler, module: Any) -> Any:
    import torch

    pickler.note("a scripted module's parameters are saved apart from any other use of them")
    file = io.BytesIO()
    torch.jit.save(module, file)
    return RebuildModules.script, (file.getvalue(), type(module).__name__ == "ScriptFunction")


def _reduce_limits(pickler: SnapshotPickler, limits: Any) -> Any:
    import torch

    return type(limits), (getattr(torch, limits.dtype),)


def _refuse_iteration(pickler: SnapshotPickler, iteration: Any) -> Any:
    pickler.refuse(iteration, "an iteration over a DataLoader that is under way cannot be saved")


class RebuildModules:
    """What a stream calls to make torch modules again; part of `Rebuild`."""

    def parametrized(self, base: Any, names: list[str]) -> Any:
        """Return an empty module whose attributes `names` are computed."""
        from torch.nn.utils import parametrize

        module = base.__new__(base)
        parametrize._inject_new_class(module)
        for name in names:
            parametrize._inject_property(module, name)
        return module

    def fill_module_dict(self, module: Any, attributes: dict[str, Any]) -> None:
        """Give a module its attributes as they were, without registering them anew."""
        vars(module).update(attributes)

    def script(self, data: bytes, function: bool) -> Any:
        """Return a scripted module or function."""
        import torch

        module = torch.jit.load(io.BytesIO(data))
        return module.forward if function else module

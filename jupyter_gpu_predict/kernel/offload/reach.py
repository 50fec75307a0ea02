"""Which storages can be reached from some objects, as far as a bounded walk can tell."""

from __future__ import annotations

import contextlib
import gc
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

from .graph import is_node_type, saved_tensors
from .holdings import script_tensors

MOST_OBJECTS = 200_000
"""A walk ends here: what was not reached is found later than it could be, and never lost."""

_BARREN = (
    str, bytes, bytearray, int, float, complex, bool, type(None), types.ModuleType,
    types.FrameType, types.CodeType, types.BuiltinFunctionType, types.GetSetDescriptorType,
)  # fmt: skip


class Reach:
    """A walk over objects; each is visited once, however often it is asked for.

    Nothing of the user's runs. Modules and what libraries define are not entered: everything can be
    reached from there. Of a function of the user's, what its code names is.
    """

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._base = torch._C.TensorBase
        self._seen: dict[int, Any] = {}
        self._plain: dict[type, bool] = {}

    def storages(self, objects: Iterable[Any]) -> set[int]:
        """Return the ``_cdata`` of each storage reached from `objects` and not reached before."""
        found: set[int] = set()
        nodes: list[Any] = []
        stack = list(objects)
        while stack and len(self._seen) < MOST_OBJECTS:
            value = stack.pop()
            cls = type(value)
            if self._is_barren(cls) or id(value) in self._seen:
                continue
            self._seen[id(value)] = value
            if isinstance(value, self._base):
                self._tensor(value, found, stack, nodes)
            elif isinstance(value, self._torch.UntypedStorage):
                found.add(value._cdata)
            elif isinstance(value, types.FunctionType):
                stack.extend(_of_function(value))
            elif isinstance(value, type):
                if value.__module__ == "__main__":
                    stack.extend(vars(value).values())
            elif is_node_type(cls):
                nodes.append(value)
            else:
                stack.extend(gc.get_referents(value))
                if isinstance(value, self._torch.jit.ScriptModule):
                    stack.extend(script_tensors(self._torch, value))
        for tensor in saved_tensors(nodes, self._base):
            self._tensor(tensor, found, [], [])
        return found

    def _is_barren(self, cls: type) -> bool:
        barren = self._plain.get(cls)
        if barren is None:
            barren = self._plain[cls] = issubclass(cls, _BARREN)
        return barren

    def _tensor(self, tensor: Any, found: set[int], stack: list[Any], nodes: list[Any]) -> None:
        base = self._base
        # What has no storage of its own consists of its referents, or is never suspended.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            found.add(base.untyped_storage(tensor)._cdata)
        if base.is_leaf.__get__(tensor):
            stack.append(base.grad.__get__(tensor))
        else:
            nodes.append(base.grad_fn.__get__(tensor))
        stack.extend(gc.get_referents(tensor))


def _of_function(function: types.FunctionType) -> Iterator[Any]:
    yield function.__defaults__
    yield function.__kwdefaults__
    yield function.__dict__
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            continue  # not bound yet
    space = function.__globals__
    if space.get("__name__") == "__main__" or space is getattr(
        sys.modules.get("__main__"), "__dict__", None
    ):
        for name in _names(function.__code__):
            yield space.get(name)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)

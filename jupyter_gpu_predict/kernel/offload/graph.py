"""Tensors that only the autograd graph holds, which the garbage collector does not see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import GetSetDescriptorType
from typing import Any


def is_node_type(cls: type) -> bool:
    """Return whether objects of `cls` are nodes of an autograd graph."""
    return any(map(_makes_nodes, cls.__mro__))


def node_types() -> list[type]:
    """Return the classes from which those of all such nodes derive."""
    return list(filter(_makes_nodes, object.__subclasses__()))


def _makes_nodes(cls: type) -> bool:
    # One that C defines: what a class of the user's calls so is no graph.
    return isinstance(cls.__dict__.get("next_functions"), GetSetDescriptorType)


def saved_tensors(nodes: Iterable[Any], tensor_base: type) -> Iterator[Any]:
    """Yield the tensors saved for backward by `nodes` and everything below them.

    The saved values are read raw: unpacking them would run the user's saved-tensor hooks. What was
    packed by such hooks is a Python object, which the garbage collector does see.
    """
    names: dict[type, tuple[str, ...]] = {}
    seen: dict[int, Any] = {}
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node is None or id(node) in seen:
            continue
        seen[id(node)] = node
        cls = type(node)
        if cls not in names:
            names[cls] = tuple(
                n for n in dir(cls) if n.startswith("_raw_saved_") or n == "variable"
            )
        for name in names[cls]:
            yield from _tensors(node, name, tensor_base)
        stack.extend(child for child, _ in node.next_functions)


def _tensors(node: Any, name: str, tensor_base: type) -> Iterator[Any]:
    try:
        value = getattr(node, name)
        values = value if isinstance(value, (tuple, list)) else (value,)
        found = [v if isinstance(v, tensor_base) else getattr(v, "data", None) for v in values]
    except RuntimeError:
        # The graph was used and its saved tensors are gone: there is nothing to take back.
        return
    for tensor in found:
        if isinstance(tensor, tensor_base):
            yield tensor

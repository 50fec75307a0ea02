"""What a pickle stream describes, as plain data."""

from __future__ import annotations

from typing import Any


class Global:
    """A class or function by its name."""

    __slots__ = ("module", "name", "states")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name
        self.states: list[tuple[Any, Any]] | None = None

    def __repr__(self) -> str:
        return f"Global({self.module}.{self.name})"


class Call:
    """What unpickling would make by calling `function`.

    `how` is ``"reduce"``, ``"new"`` (``__new__`` of a class), ``"persistent"``, ``"extension"`` or
    ``"buffer"``. `items` and `pairs` (flat: key, value, …) are added to it afterwards, `states`
    are pairs of a setter (``None`` for ``__setstate__``) and a state.
    """

    __slots__ = ("arguments", "function", "how", "items", "keywords", "pairs", "states")

    def __init__(self, how: str, function: Any, arguments: Any, keywords: Any = None) -> None:
        self.how = how
        self.function = function
        self.arguments = arguments
        self.keywords = keywords
        self.items: list[Any] | None = None
        self.pairs: list[Any] | None = None
        self.states: list[tuple[Any, Any]] | None = None


class Pairs(list[Any]):
    """A dictionary: key, value, key, value, … in its order."""

    __slots__ = ()


class Items(list[Any]):
    """A set."""

    __slots__ = ()


class FrozenItems(list[Any]):
    """A frozen set."""

    __slots__ = ()

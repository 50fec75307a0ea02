"""What the analysis of a cell finds."""

from __future__ import annotations

from dataclasses import dataclass, field

RESULT = "return"
"""Stands in `Uses.joins` for what a function returns or yields; no name can be spelt so."""


@dataclass(frozen=True)
class Call:
    """A call.

    `root` and `path` spell what is called; `root` is empty for what is no dotted name. `args` are
    the names that are handed over, `given` whether anything is. `plain` is a call without keywords
    through which it may do more than read.
    """

    root: str
    path: str
    args: frozenset[str]
    plain: bool
    given: bool = True


@dataclass
class Uses:
    """What a stretch of code does to names; local ones are in `params` and `joins` only.

    `reads` are those of `loads` that may come from before. `joins` are names that may afterwards
    be, or hold, the same objects. `given` are names that its cell had surely bound before it
    defined the function. `fault` says why it must not run again, and with `anything` it
    may change any variable.
    """

    reads: set[str] = field(default_factory=set)
    loads: set[str] = field(default_factory=set)
    writes: set[str] = field(default_factory=set)
    stores: set[str] = field(default_factory=set)
    iterates: set[str] = field(default_factory=set)
    calls: set[Call] = field(default_factory=set)
    joins: set[frozenset[str]] = field(default_factory=set)
    params: tuple[str, ...] = ()
    fault: str = ""
    anything: bool = False
    given: frozenset[str] = frozenset()
    local: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Analysis:
    """What a cell does at once (`now`), and what its functions and classes do when called.

    `later` has the functions by the name they are bound to (``"C.method"`` in a class), lambdas
    and functions inside others are part of what surrounds them.
    """

    now: Uses
    later: dict[str, list[Uses]]

    @property
    def code_names(self) -> set[str]:
        """The names that a ``def`` or ``class`` at the top binds."""
        return {name.partition(".")[0] for name in self.later}

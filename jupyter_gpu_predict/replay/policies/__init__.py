"""Policies that a replay compares: who gets a GPU, and who gives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from ...errors import BadInputError

if TYPE_CHECKING:
    from ..engine import Book, Simulation


class Policy(Protocol):
    """What a simulation asks of a policy; `free` ones pay nothing for switches."""

    name: str
    free: bool

    def begin(self, sim: Simulation) -> None:
        """Take note of a simulation that begins."""

    def asked(self, sim: Simulation, book: Book) -> None:
        """Take note of a book that waits from now on; start it if its state is on a GPU."""

    def ended(self, sim: Simulation, book: Book) -> None:
        """Take note of a burst that is over."""

    def decide(self, sim: Simulation) -> None:
        """Act, after all that has happened at one moment."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """A policy to be replayed: how to make a fresh one, and whether its kernels share GPUs."""

    name: str
    make: Callable[[], Policy]
    shared: bool = False


def entrants() -> dict[str, Entrant]:
    """Return the policies that are known, by name."""
    from .classic import Fifo, Histogram, IdleTimeout, Lru, OnDemand, Reservation, Sjf
    from .preempting import LeastAttained, ShortestRemaining
    from .product import Product

    made: list[Callable[[], Policy]] = [
        Fifo,
        Sjf,
        Reservation,
        *(partial(IdleTimeout, timeout_s) for timeout_s in (60.0, 300.0, 900.0, 3600.0)),
        partial(IdleTimeout, 300.0, pressure=True),
        OnDemand,
        Histogram,
        Lru,
        LeastAttained,
        ShortestRemaining,
        Product,
        partial(Product, preempt=True),
    ]
    found = [Entrant(make().name, make) for make in made]
    for preempt in (False, True):
        name = f"product, {'preempting, ' if preempt else ''}sharing"
        found.append(Entrant(name, partial(Product, preempt=preempt, name=name), shared=True))
    return {e.name: e for e in found}


def choose(text: str) -> list[Entrant]:
    """Return the policies that `text` names, parted by semicolons; ``"all"`` names each.

    Raises
    ------
    BadInputError
        If there is none of a name.
    """
    known = entrants()
    names = list(known) if text == "all" else [n.strip() for n in text.split(";") if n.strip()]
    unknown = [n for n in names if n not in known]
    if unknown or not names:
        told = "; ".join(known)
        raise BadInputError(f"no policy {'; '.join(unknown) or text!r}; known: {told}")
    return [known[n] for n in names]

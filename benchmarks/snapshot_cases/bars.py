"""The bars that the engine is held to, each with both of its sides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .results import Results

OURS, PLAIN = "snapshot", "write+fsync"


@dataclass(frozen=True)
class Bar:
    """One bar: `measured` must be at most `limit`, or at least where `at_least`.

    `ours` and `other` are in words, as they are shown. `measured` is None where a side is missing;
    without a limit it is only shown.
    """

    case: str
    name: str
    ours: str
    other: str
    measured: float | None
    limit: float | None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Tell whether it is met; None if that cannot be told."""
        if self.measured is None or self.limit is None:
            return None
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def bars(results: Results, cases: list[str], changed_bytes: dict[str, int]) -> list[Bar]:
    """Return the bars of these cases; `changed_bytes` of the first change, where it is known."""
    found: list[Bar] = []
    for case in cases:
        found += _save(results, case)
        found += _again(results, case, changed_bytes.get(case))
        found += _restore(results, case)
        found += _memory(results, case)
        found += _answers(results, case)
        found += _pause(results, case)
    return found


def _save(r: Results, case: str) -> Iterator[Bar]:
    if case in ("arrays", "torch_adam", "aliased"):
        sides = r.least(case, OURS, "save_s"), r.least(case, PLAIN, "save_s")
        yield _ratio(case, "save / plain write (minima)", *sides, 1.15)
    if case == "objects":
        ours = r.median(case, OURS, "save_s")
        dill, plain = (r.median(case, m, "save_s") for m in ("dill", "pickle"))
        yield _ratio(case, "dill / save", dill, ours, 12, at_least=True)
        yield _ratio(case, "save / plain C pickle", ours, plain, 1.2)


def _again(r: Results, case: str, changed: int | None) -> Iterator[Bar]:
    if case == "arrays":
        sides = r.median(case, OURS, "change_s"), r.median(case, OURS, "save_s")
        yield _ratio(case, "save after change / first", *sides, 0.1)
        written = r.median(case, OURS, "change_bytes")
        yield _ratio(case, "bytes written / changed", written, changed, 1.3, unit="B")
        same = r.median(case, OURS, "no_change_s"), r.median(case, PLAIN, "hash_pass_s")
        yield _ratio(case, "save of no change / hash pass", *same, None)
    if case == "objects":
        first = r.median(case, OURS, "save_bytes")
        for label in ("append", "insert"):
            second = r.median(case, OURS, f"{label}_bytes")
            yield _ratio(case, f"bytes after {label} / first", second, first, 0.1, unit="B")


def _restore(r: Results, case: str) -> Iterator[Bar]:
    ours = r.median(case, OURS, "restore_s")
    peers = {
        method: time
        for method in r.methods(case)
        if method != OURS
        and r.all_right(case, method)
        and (time := r.median(case, method, "restore_s")) is not None
    }
    if peers:
        best = min(peers, key=lambda method: peers[method])
        yield _ratio(case, f"restore / {best}, fastest right", ours, peers[best], 1.0)
    else:
        said = _said(ours, "s")
        yield Bar(case, "restore / fastest right", said, "no peer is right", None, 1.0)
    if case == "aliased":
        dill = r.median(case, "dill", "restore_s")
        yield _ratio(case, "dill / restore", dill, ours, 10, at_least=True)


def _memory(r: Results, case: str) -> Iterator[Bar]:
    extra = r.median(case, OURS, "save_extra_mb")
    group = r.median(case, OURS, "largest_group_bytes")
    limit = None if group is None else 64 + 0.1 * group / 1e6
    yield _ratio(case, "save's extra / 64 MB + 10 % of group", extra, limit, 1.0, unit="MB")
    peak, state = (r.median(case, OURS, m) for m in ("restore_extra_mb", "state_mb"))
    yield _ratio(case, "restore's peak / state", peak, state, 1.1, unit="MB")


def _answers(r: Results, case: str) -> Iterator[Bar]:
    for kind in ("values", "aliases", "accounted"):
        count = r.right.get((case, OURS, kind))
        if count is None:
            if kind == "accounted" and case != "unpicklable":
                continue
            yield Bar(case, f"{kind} right", "-", "-", None, 1.0, at_least=True)
        elif count[1]:
            part = count[0] / count[1]
            yield Bar(case, f"{kind} right", str(count[0]), str(count[1]), part, 1.0, at_least=True)


def _pause(r: Results, case: str) -> Iterator[Bar]:
    if case != "arrays":
        return
    runs = len(r.samples.get((case, OURS, "pause_seen_s"), ()))
    for word, statistic in (("median", r.median), ("worst", r.most)):
        both = [statistic(case, OURS, m) for m in ("pause_told_s", "pause_seen_s")]
        known = [b * 1000 for b in both if b is not None]
        said = f"{known[1]:.0f} ms, told {known[0]:.0f}" if len(known) == 2 else "-"
        yield Bar(case, f"pause, {word}", said, f"{runs} runs", max(known, default=None), 150)


def _ratio(
    case: str,
    name: str,
    over: float | None,
    under: float | None,
    limit: float | None,
    *,
    at_least: bool = False,
    unit: str = "s",
) -> Bar:
    measured = over / under if over is not None and under else None
    sides = _said(over, unit), _said(under, unit)
    return Bar(case, name, *sides, measured, limit, at_least)


def _said(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "B":
        return f"{value / 1e6:.3f} MB"
    return f"{value:.3f} {unit}"

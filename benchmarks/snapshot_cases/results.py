"""What was measured, by case, method and metric."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

Row = dict[str, Any]

_COUNTED = ("values", "aliases")


class Results:
    """Samples of every figure, and how many of the answers were right."""

    def __init__(self) -> None:
        self.samples: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        self.failures: dict[tuple[str, str], str] = {}
        self.wrong: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        self.right: dict[tuple[str, str, str], tuple[int, int]] = {}

    def note(self, case: str, method: str, found: Mapping[str, Any]) -> None:
        """Keep the numbers of one worker's findings, and its failure if it tells one."""
        for metric, value in found.items():
            if isinstance(value, int | float):
                self.samples[case, method, metric].append(value)
        for metric, values in found.get("samples", {}).items():
            self.samples[case, method, metric].extend(values)
        if "failure" in found:
            self.failures.setdefault((case, method), found["failure"])

    def judge(
        self, case: str, method: str, saved: Mapping[str, Any], found: Mapping[str, Any]
    ) -> None:
        """Count right answers; of several runs the worst counts."""
        answers = {
            "values": {k: (v, saved["values"][k]) for k, v in found["values"].items()},
            "aliases": {k: (v, ["is", "True"]) for k, v in found["aliases"].items()},
        }
        for kind in _COUNTED:
            good = 0
            for name, (value, wanted) in answers[kind].items():
                if value == wanted and value[0] == "is":
                    good += 1
                elif len(self.wrong[case, method]) < 100:
                    self.wrong[case, method][name] = value[1][:80]
            self._count(case, method, kind, good, len(answers[kind]))
        outcomes = found["accounted"]
        if outcomes:
            kept = sum(outcome != "missing" for outcome in outcomes.values())
            self._count(case, method, "accounted", kept, len(outcomes))

    def _count(self, case: str, method: str, kind: str, good: int, total: int) -> None:
        worst = self.right.get((case, method, kind), (good, total))
        self.right[case, method, kind] = min(worst, (good, total))

    def median(self, case: str, method: str, metric: str) -> float | None:
        """Return the median of a figure, None if it was not measured."""
        samples = self.samples.get((case, method, metric))
        return statistics.median(samples) if samples else None

    def least(self, case: str, method: str, metric: str) -> float | None:
        """Return the smallest sample."""
        samples = self.samples.get((case, method, metric))
        return min(samples) if samples else None

    def most(self, case: str, method: str, metric: str) -> float | None:
        """Return the largest sample."""
        samples = self.samples.get((case, method, metric))
        return max(samples) if samples else None

    def all_right(self, case: str, method: str) -> bool:
        """Tell whether every value and every alias came back, in every run."""
        counts = [self.right.get((case, method, kind)) for kind in _COUNTED]
        return (case, method) not in self.failures and all(
            count is not None and count[0] == count[1] for count in counts
        )

    def methods(self, case: str) -> list[str]:
        """Return the methods that were tried on a case."""
        found = {m for c, m, _ in self.samples if c == case}
        found |= {m for c, m in self.failures if c == case}
        return sorted(found)

    def rows(self) -> list[Row]:
        """Return everything as rows of one figure each."""
        rows: list[Row] = []

        def add(case: str, method: str, metric: str, value: object, unit: str) -> None:
            rows.append(
                {"case": case, "method": method, "metric": metric, "value": value, "unit": unit}
            )

        for (case, method, metric), samples in self.samples.items():
            unit = unit_of(metric)
            add(case, method, f"{metric} median", statistics.median(samples), unit)
            add(case, method, f"{metric} min", min(samples), unit)
            add(case, method, f"{metric} max", max(samples), unit)
            add(case, method, f"{metric} runs", len(samples), "runs")
        for (case, method, kind), (good, total) in self.right.items():
            add(case, method, f"{kind} right", good, "answers")
            add(case, method, f"{kind} asked", total, "answers")
        for (case, method), names in self.wrong.items():
            for name, value in names.items():
                add(case, method, f"wrong: {name}", value, "text")
        for (case, method), failure in self.failures.items():
            add(case, method, "failure", failure, "text")
        return rows


def unit_of(metric: str) -> str:
    for ending, unit in (("_s", "s"), ("_mb", "MB"), ("bytes", "B")):
        if metric.endswith(ending):
            return unit
    return ""

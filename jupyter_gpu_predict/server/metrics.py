"""Prometheus gauges, beside Jupyter Server's own at `/metrics`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ..control.loop import ControlLoop

COUNTED = (
    "bound",
    "prebound",
    "prebind_hit",
    "reclaimed",
    "restored",
    "migrated",
    "claim_refused",
    "snapshot",
    "kernel_died",
)


def _energy(loop: ControlLoop) -> Iterator[Metric]:
    used = CounterMetricFamily(
        "jupyter_gpu_energy_joules", "Energy used since the server started.", labels=["gpu"]
    )
    empty = CounterMetricFamily(
        "jupyter_gpu_empty_seconds", "Time that a GPU stood empty.", labels=["gpu"]
    )
    saved = GaugeMetricFamily(
        "jupyter_gpu_energy_saved_joules",
        "Energy saved by standing empty, against the GPU's own idle draw.",
        labels=["gpu"],
    )
    for account in loop.facts.power.report().gpus:
        used.add_metric([account.gpu_uuid], account.used_j)
        empty.add_metric([account.gpu_uuid], account.empty_s)
        if account.saved_j is not None:
            saved.add_metric([account.gpu_uuid], account.saved_j)
    yield used
    yield empty
    yield saved


class Gauges:
    """Collects when asked, so that nothing is kept up to date for nobody."""

    def __init__(self, loop: ControlLoop) -> None:
        self._loop = loop
        self.counts: Counter[str] = Counter()
        loop.on_event(self._count)
        REGISTRY.register(self)

    def close(self) -> None:
        """Take the gauges away."""
        REGISTRY.unregister(self)

    def _count(self, kind: str) -> None:
        self.counts[kind] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield the present values."""
        loop = self._loop
        memory = GaugeMetricFamily(
            "jupyter_gpu_memory_bytes", "Memory of a GPU by kind.", labels=["gpu", "kind"]
        )
        risk = GaugeMetricFamily(
            "jupyter_gpu_risk", "Risk of a GPU: 0 none, 1 warning, 2 critical.", labels=["gpu"]
        )
        ranks = {"none": 0, "warning": 1, "critical": 2}
        for status in loop.statuses:
            held = sum(x.held_bytes for x in loop.leases.on(status.uuid))
            memory.add_metric([status.uuid, "total"], status.total_bytes)
            memory.add_metric([status.uuid, "held"], held)
            if status.used_bytes is not None:
                memory.add_metric([status.uuid, "used"], status.used_bytes)
            level = loop.risks.get(status.uuid)
            risk.add_metric([status.uuid], ranks[level.level.value] if level else 0)
        yield memory
        yield risk
        yield from _energy(loop)
        leases = GaugeMetricFamily("jupyter_gpu_leases", "Leases by state.", labels=["state"])
        for state, count in Counter(x.state.value for x in loop.leases).items():
            leases.add_metric([state], count)
        yield leases
        yield GaugeMetricFamily(
            "jupyter_gpu_claims_waiting", "Claims that wait for memory.", value=len(loop.claims)
        )
        events = CounterMetricFamily(
            "jupyter_gpu_events", "Events since the server started.", labels=["kind"]
        )
        for kind in COUNTED:
            events.add_metric([kind], self.counts[kind])
        yield events

"""Small workloads for the replay's tests, and what must hold of every outcome."""

from __future__ import annotations

from collections.abc import Sequence

from jupyter_gpu_predict.core.model import GIB
from jupyter_gpu_predict.replay.engine import Book, Gpu, Outcome, Simulation
from jupyter_gpu_predict.replay.machine import Machine
from jupyter_gpu_predict.replay.policies import Policy
from jupyter_gpu_predict.replay.workload import Notebook, Workload


def workload(*bursts: Sequence[tuple[float, float]], duty: float = 0.2, gib: int = 4) -> Workload:
    """Return notebooks of (thought, work) each."""
    return Workload(
        "made",
        0,
        tuple(
            Notebook(
                f"n{i}",
                tuple(float(t) for t, _ in own),
                tuple(float(w) for _, w in own),
                (1,) * len(own),
                gib * GIB,
                duty,
            )
            for i, own in enumerate(bursts)
        ),
    )


class Watched(Simulation):
    """A simulation that looks, at each step, at what must never happen."""

    def _recount(self, gpu: Gpu) -> None:
        super()._recount(gpu)
        held = sum(b.bytes for b in gpu.residents.values())
        assert held + gpu.free_bytes == self.machine.gpu_bytes, "memory was lost or made"
        assert gpu.free_bytes >= 0, "over capacity"
        assert set(gpu.running) <= set(gpu.residents), "runs where its state is not"
        if not self.machine.shared:
            assert len(gpu.residents) <= 1

    def _started(self, gpu: Gpu, book: Book) -> None:
        assert book.away_s <= self.now_s, "runs before its state is there"
        super()._started(gpu, book)


def replayed(load: Workload, policy: Policy, gpus: int = 1, **machine: object) -> Outcome:
    """Replay under watch; every burst is done once, none sooner than its work."""
    outcome = Watched(load, Machine(gpus, **machine), policy).run()
    done = sorted(zip(outcome.book, outcome.number, strict=True))
    assert done == [(i, k) for i, n in enumerate(load.notebooks) for k in range(len(n.work_s))]
    assert min(outcome.delay_s, default=0.0) >= 0.0
    return outcome


def delays(outcome: Outcome) -> dict[tuple[int, int], float]:
    """Return the delay of each burst by notebook and number."""
    return dict(zip(zip(outcome.book, outcome.number, strict=True), outcome.delay_s, strict=True))

"""No memory of a GPU is promised to two kernels at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loop_stage import GPU, Kernel, Stage

from jupyter_gpu_predict.control.records import KernelRecord
from jupyter_gpu_predict.core.model import MIB, CellRun, GpuStatus, Lease, LeaseState, Outcome
from jupyter_gpu_predict.core.plans import Plan, Prebind
from jupyter_gpu_predict.devices.simulated import SimulatedGpus
from jupyter_gpu_predict.errors import LinkTimeoutError

TOTAL = 512 * MIB


class Gpus(SimulatedGpus):
    """GPUs that show what processes hold, as NVML does; nothing is real."""

    simulated = False
    kernels: Sequence[Capped] = ()

    def read(self) -> tuple[GpuStatus, ...]:
        held = tuple((k.pid, k.held) for k in self.kernels if k.held)
        used = sum(size for _, size in held)
        return tuple(
            replace(s, simulated=False, used_bytes=used, processes=held) for s in super().read()
        )


class Capped(Kernel):
    """A kernel whose allocator obeys its cap."""

    def __init__(self, number: int, check: Callable[[], None]) -> None:
        super().__init__()
        self.number = number
        self.check = check
        self.most = 0
        self.held = 0
        self.keeps = 0
        """How much of what it has its allocator gives back when its cap falls below that."""
        self.grabs = 0
        """What it takes, as far as it may, just before its cap falls."""
        self.record: KernelRecord

    @property
    def pid(self) -> int:
        return 5000 + self.number

    def pids(self) -> tuple[int, ...]:
        return (self.pid,)

    async def bind(self, lease: Lease, *, cap_bytes: int | None, **more: Any) -> Any:
        if more.get("warm"):
            self.said.append(("warm", lease.gpu_uuid, lease.bytes))
            return {}
        answer = await super().bind(lease, **more)
        if cap_bytes is not None:
            self.most = cap_bytes
            self.check()
        return answer

    async def cap(self, cap_bytes: int, timeout_s: float) -> dict[str, Any]:
        await asyncio.sleep(0)
        await super().cap(cap_bytes, timeout_s)
        if cap_bytes < self.most:
            self.held = max(self.held, min(self.grabs, self.most))
        self.most = cap_bytes
        if self.held > cap_bytes:
            self.held -= self.keeps
        self.check()
        return {"reserved_bytes": self.held}

    async def reclaim(self, epoch: int, *, wait: bool) -> dict[str, Any]:
        answer = await super().reclaim(epoch, wait=wait)
        self.held = 0
        return answer


class Capping(Stage):
    """A stage whose kernels are held to caps; every change of one is checked."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.violations: list[str] = []
        self.gpus = Gpus(1, TOTAL, clock=lambda: self.now)
        self.loop.backend = self.gpus
        self.capped: list[Capped] = []

    def check(self) -> None:
        """Note a moment at which more was promised than there is."""
        told = [k.most for k in self.capped if not k.record.checkpointed]
        booked = self.loop.caps.in_force(GPU)
        if max(sum(told), sum(booked.values())) > TOTAL:
            self.violations.append(f"{[n // MIB for n in told]}, booked {booked}")

    async def kernel(self, name: str, used: int = 0, *, agent: bool = True) -> Capped:
        made = await super().kernel(name, used, agent=agent)
        port = Capped(len(self.capped), self.check)
        assert made.record is not None
        port.record, port.held = made.record, used
        port.record.port = port
        self.capped.append(port)
        self.gpus.kernels = self.capped
        return port

    async def settled(self) -> None:
        """Turn until nothing is left to be told."""
        await self.turn()
        await self.until(lambda: not self.loop.caps._changed(GPU))

    def begin(self, kernel: Capped) -> None:
        self.loop.cell_started(kernel.record, "d")

    def end(self, kernel: Capped) -> None:
        if kernel.record.busy:
            run = CellRun(
                kernel_id=kernel.record.kernel_id, notebook=None, cell_id=None, digest="d",
                start_s=self.now - 1, end_s=self.now, peak_bytes=kernel.held,
                end_bytes=kernel.held, peak_source="torch.emu", host_peak_bytes=0, busy_s=1.0,
                outcome=Outcome.OK,
            )  # fmt: skip
            self.loop.cell_ran(kernel.record, run)


steps = st.lists(
    st.tuples(
        st.sampled_from(["begin", "end", "grow", "shrink", "claim", "ask", "turn", "settle"]),
        st.integers(0, 3),
        st.integers(1, 300),
    ),
    min_size=5,
    max_size=40,
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps)
def test_at_no_moment_do_the_caps_pass_what_the_gpu_has(
    events: list[tuple[str, int, int]],
) -> None:
    async def story(folder: Path) -> None:
        stage = Capping(folder)
        kernels = [await stage.kernel(f"k{i}") for i in range(4)]
        await stage.settled()
        for what, which, mib in events:
            kernel, size = kernels[which], mib * MIB
            stage.now += 1
            if what == "begin":
                stage.begin(kernel)
            elif what == "end":
                stage.end(kernel)
            elif what == "grow" and kernel.record.busy:
                kernel.held = min(kernel.held + size, max(kernel.held, kernel.most))
            elif what == "shrink":
                kernel.held = max(0, kernel.held - size)
            elif what == "claim" and not kernel.record.busy:
                stage.claim(f"k{which}", size)
            elif what == "ask" and kernel.record.busy:
                # Only sometimes does the server know what the cell has taken by then.
                if mib % 2:
                    kernel.record.used_bytes = kernel.held
                stage.claim(f"k{which}", kernel.most + size, origin="growth")
            elif what == "turn":
                await stage.turn()
            elif what == "settle":
                await stage.settled()
            assert sum(k.held for k in kernels) <= TOTAL
        await stage.settled()
        for kernel in kernels:
            lease = stage.lease(kernel.record.kernel_id)
            assert kernel.most >= lease.held_bytes
        assert not stage.violations
        await stage.loop.close()
        stage.store.close()

    with TemporaryDirectory() as folder:
        asyncio.run(story(Path(folder)))


def play(tmp_path: Path, story: Callable[[Capping], Any], *, strict: bool = True) -> None:
    async def whole() -> None:
        stage = Capping(tmp_path)
        try:
            await story(stage)
            assert not (strict and stage.violations), stage.violations
        finally:
            await stage.loop.close()
            stage.store.close()

    asyncio.run(whole())


def test_who_runs_alone_may_take_what_nobody_holds_until_another_runs(tmp_path: Path) -> None:
    async def story(stage: Capping) -> None:
        one, other = await stage.kernel("one"), await stage.kernel("other", 100 * MIB)
        stage.begin(one)
        await stage.settled()
        assert (one.most, other.most) == (412 * MIB, 100 * MIB)
        stage.begin(other)
        await stage.settled()
        assert (one.most, other.most) == (206 * MIB, 306 * MIB)
        stage.end(one)
        await stage.settled()
        assert (one.most, other.most) == (0, 512 * MIB)

    play(tmp_path, story)


def test_what_a_running_cell_has_taken_is_not_taken_for_another_programs(tmp_path: Path) -> None:
    async def story(stage: Capping) -> None:
        one = await stage.kernel("one")
        stage.begin(one)
        await stage.settled()
        one.held = 400 * MIB
        await stage.settled()
        assert one.most == TOTAL

    play(tmp_path, story)


def test_a_grant_comes_after_the_neighbours_have_made_room(tmp_path: Path) -> None:
    async def story(stage: Capping) -> None:
        one, other = await stage.kernel("one"), await stage.kernel("other")
        stage.begin(one)
        await stage.settled()
        assert one.most == TOTAL
        stage.claim("other", 300 * MIB)
        await stage.until(other.granted)
        assert other.most >= 300 * MIB
        assert one.most + other.most == TOTAL

    play(tmp_path, story)


def test_what_a_neighbour_took_at_the_last_moment_is_not_granted(tmp_path: Path) -> None:
    async def story(stage: Capping) -> None:
        one, other = await stage.kernel("one"), await stage.kernel("other")
        stage.begin(one)
        await stage.settled()
        one.grabs = 250 * MIB
        stage.begin(other)
        stage.claim("other", 400 * MIB, origin="growth")
        await stage.until(other.granted)
        assert (one.held, other.most) == (250 * MIB, 262 * MIB)
        await stage.settled()
        assert one.held + other.most <= TOTAL

    play(tmp_path, story)


def test_what_an_idle_neighbour_only_keeps_for_later_comes_back(tmp_path: Path) -> None:
    async def story(stage: Capping) -> None:
        one, other = await stage.kernel("one"), await stage.kernel("other")
        stage.begin(one)
        await stage.settled()
        one.held = 400 * MIB
        await stage.settled()
        stage.end(one)
        # Its tensors are gone, its allocator's blocks are not.
        one.record.used_bytes, one.keeps = 0, 400 * MIB
        stage.claim("other", 300 * MIB)
        await stage.until(other.granted)
        assert one.held + other.most <= TOTAL

    play(tmp_path, story)


def test_a_neighbour_that_does_not_answer_keeps_what_it_was_told(tmp_path: Path) -> None:
    async def story(stage: Capping) -> None:
        deaf, other = await stage.kernel("deaf"), await stage.kernel("other")
        stage.begin(deaf)
        await stage.settled()
        deaf.deaf = LinkTimeoutError("it runs C code")
        stage.begin(other)
        await stage.turn()
        await stage.until(lambda: stage.loop.caps._refreshing is None)
        assert stage.loop.caps.in_force(GPU) == {"deaf": TOTAL, "other": 0}
        stage.end(other)
        stage.claim("other", 300 * MIB)
        await stage.until(other.granted)
        # Its lease is its own in any case; nothing beyond it is there.
        assert other.most == 300 * MIB
        deaf.deaf = None
        await stage.settled()
        assert (deaf.most, other.most) == (106 * MIB, 406 * MIB)

    play(tmp_path, story, strict=False)


def test_what_the_driver_has_comes_back_with_no_more_than_it_had(tmp_path: Path) -> None:
    async def story(stage: Capping) -> None:
        one = await stage.kernel("one", 100 * MIB)
        driver = stage.driver()
        driver.sizes["one"] = 100 * MIB
        await stage.settled()
        assert one.most == TOTAL
        await stage.loop.reclaim("one", "asked")
        assert driver.held("one")
        one.held = 0
        assert one.most == 100 * MIB
        assert stage.loop.caps.in_force(GPU) == {}
        other = await stage.kernel("other")
        stage.begin(other)
        await stage.settled()
        assert other.most == TOTAL
        stage.claim("one", 100 * MIB)
        await stage.until(one.granted)
        assert one.most + other.most == TOTAL

    play(tmp_path, story)


def test_what_is_set_aside_ahead_of_use_is_warmed_up_and_not_granted(tmp_path: Path) -> None:
    async def story(stage: Capping) -> None:
        one = await stage.kernel("one")
        await stage.settled()
        await stage.loop.leases.release("one")
        action = Prebind("one", GPU, 100 * MIB, "its cells come soon")
        await stage.loop.reconciler.carry_out(Plan(stage.now, (action,)))
        await stage.until(lambda: ("warm", GPU, 0) in one.said)
        assert stage.lease("one").state is LeaseState.RESERVED
        assert stage.lease("one").bytes == 100 * MIB

    play(tmp_path, story)


def test_simulated_gpus_are_told_no_caps(tmp_path: Path) -> None:
    async def story() -> None:
        stage = Stage(tmp_path)
        one = await stage.kernel("one")
        stage.claim("one", 100 * MIB)
        await stage.until(one.granted)
        await stage.turn()
        assert not [said for said in one.said if said[0] == "cap"]
        await stage.loop.close()
        stage.store.close()

    asyncio.run(story())

"""Suspending and restoring on emulated devices: an allocator, capacities, several processes."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from emulators.accelerator import Devices, FailedInWorkerError, Worker

from jupyter_gpu_predict.errors import DeviceError
from jupyter_gpu_predict.kernel.offload import Offloader, exports, scan

# Whichever test comes first builds the library.
pytestmark = pytest.mark.timeout(600)

MIB = 1 << 20


@pytest.fixture(scope="module")
def devices(accelerator: None, tmp_path_factory: pytest.TempPathFactory) -> Devices:
    ledger = tmp_path_factory.mktemp("devices") / "ledger"
    return Devices(ledger, (96 * MIB, 96 * MIB), poison=True)


@pytest.fixture(scope="module")
def workers(devices: Devices) -> Iterator[list[Worker]]:
    with Worker(devices) as first, Worker(devices) as second:
        yield [first, second]


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for worker in request.getfixturevalue("workers"):
        worker.call(forget)


KEPT: dict[str, Any] = {}
"""What a worker keeps between two calls."""


def forget() -> None:
    import torch

    KEPT.clear()
    gc.collect()
    torch.emu.empty_cache()


def hold(megabytes: int) -> None:
    """Keep random tensors of so much memory, half of it in small ones, and an offloader."""
    import torch

    torch.manual_seed(megabytes)
    half = megabytes * MIB // 8
    large = torch.randn(half, device="emu:0")
    small = [torch.randn(64 * 1024, device="emu:0") for _ in range(half // (64 * 1024))]
    KEPT.update(large=large, small=small, view=large[100:200], offloader=Offloader("emu", "/tmp"))
    KEPT["sums"] = sums()


def sums() -> list[float]:
    return [t.cpu().double().sum().item() for t in (KEPT["large"], KEPT["view"], *KEPT["small"])]


def suspend(wanted: int | None = None) -> tuple[int, tuple[tuple[str, int], ...], bool]:
    report = KEPT["offloader"].suspend(wanted)
    return report.freed_bytes, report.kept, sums() == KEPT["sums"]


def restore() -> bool:
    KEPT["offloader"].restore()
    assert not KEPT["offloader"].suspended_bytes
    return sums() == KEPT["sums"]


def restore_in_vain() -> bool:
    with pytest.raises(DeviceError, match="stays suspended and whole"):
        KEPT["offloader"].restore()
    return sums() == KEPT["sums"]


def test_what_one_kernel_gives_back_another_can_have(
    devices: Devices, workers: list[Worker]
) -> None:
    first, second = workers
    first.call(hold, 60)
    assert devices.used(0) >= 60 * MIB
    with pytest.raises(FailedInWorkerError) as full:
        second.call(hold, 60)
    assert full.value.kind == "OutOfMemoryError"
    second.call(forget)
    assert first.call(suspend) == (60 * MIB, (), True)
    assert devices.holders(0).get(first.pid, 0) == 0
    second.call(hold, 60)
    assert first.call(restore_in_vain)
    assert devices.holders(0).get(first.pid, 0) == 0
    second.call(forget)
    assert first.call(restore)
    assert devices.used(0) >= 60 * MIB


def cache_only() -> tuple[int, int]:
    import torch

    offloader = Offloader("emu", "/tmp")
    torch.ones(20 * MIB // 4, device="emu:0")  # gone at once, but not from the cache
    held = sum(s["total_size"] for s in torch.emu.memory_snapshot())
    offloader.suspend()
    return held, sum(s["total_size"] for s in torch.emu.memory_snapshot())


def test_what_was_deleted_is_given_back_too(workers: list[Worker]) -> None:
    before, after = workers[0].call(cache_only)
    assert before >= 20 * MIB
    assert after == 0


def test_a_part_is_enough_when_a_part_is_wanted(devices: Devices, workers: list[Worker]) -> None:
    workers[0].call(hold, 60)
    before = devices.used(0)
    freed, kept, right = workers[0].call(suspend, 15 * MIB)
    assert right
    assert not kept
    assert 15 * MIB <= freed < 60 * MIB
    assert before - devices.used(0) >= 15 * MIB
    assert workers[0].call(restore)


def scatter(pinned: int) -> None:
    """Keep 160 small tensors, 32 to a segment, and let others have got hold of some."""
    import torch

    small = [torch.full((16 * 1024,), float(i), device="emu:0") for i in range(160)]
    KEPT.update(small=small, large=small[0], view=small[1], offloader=Offloader("emu", "/tmp"))
    KEPT["sums"] = sums()
    for tensor in small[:: 160 // pinned] if pinned else []:
        tensor.untyped_storage()._jupyter_gpu_exports = [("exported by DLPack", None)]
        exports._marks += 1


@pytest.mark.parametrize("wanted", [1, 2 * MIB, 3 * MIB, 5 * MIB])
def test_so_many_small_ones_that_whole_segments_fall_free(
    devices: Devices, workers: list[Worker], wanted: int
) -> None:
    workers[0].call(scatter, 0)
    before = devices.used(0)
    freed, kept, right = workers[0].call(suspend, wanted)
    given = before - devices.used(0)
    assert right
    assert not kept
    assert wanted <= given < wanted + 2 * MIB
    assert freed <= given
    assert workers[0].call(restore)


def test_one_that_must_stay_in_each_segment_keeps_them_all(
    devices: Devices, workers: list[Worker]
) -> None:
    workers[0].call(scatter, 5)
    before = devices.used(0)
    _, kept, right = workers[0].call(suspend, MIB)
    assert right
    assert kept == (("exported by DLPack", 5 * 64 * 1024),)
    assert devices.used(0) == before
    assert workers[0].call(restore)


def every_hiding_place() -> tuple[int, int, int]:
    import torch

    class Slotted:
        __slots__ = ("inside",)

    def closure(tensor: Any) -> Callable[[], Any]:
        return lambda: tensor

    def new(megabytes: int) -> Any:
        return torch.ones(megabytes * MIB // 4, device="emu:0")

    forget()
    slotted = Slotted()
    slotted.inside = new(3)
    kept = [slotted, closure(new(5)), {"a": [new(7)]}]
    layer = torch.nn.Linear(512, 512, device="emu:0")
    loss = (layer(torch.ones(64, 512, device="emu:0")).relu() * 2).sum()
    loss.backward(retain_graph=True)
    layer.weight.grad.fill_(1)
    stack = [loss, layer]
    holdings = scan("emu")
    table = [
        (block["address"], block["size"])
        for segment in torch.emu.memory_snapshot()
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    ]
    missed = holdings.unseen_bytes(table)
    lost = holdings.unseen_bytes([*table, (1, 4096)])
    del kept, stack
    return missed, lost, holdings.used_bytes


def test_the_allocators_own_table_says_that_nothing_was_missed(workers: list[Worker]) -> None:
    missed, lost, used = workers[0].call(every_hiding_place)
    assert missed == 0
    assert lost == 4096
    assert used > 15 * MIB


def _train(steps: int, seed: int | None, autocast: bool) -> tuple[list[float], list[Any], int]:
    """Train; with a seed, memory is taken back before steps and in the middle of some."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(7)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    model = torch.nn.Sequential(
        torch.nn.Embedding(11, 16), torch.nn.TransformerEncoder(layer, 1), torch.nn.Linear(16, 11)
    ).to("emu:1")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    scaler = torch.amp.GradScaler("emu", enabled=autocast)
    seen = []
    model[2].register_forward_hook(lambda _, __, output: seen.append(output.sum().item()))
    offloader = Offloader("emu", "/tmp")
    choose = random.Random(seed)
    reclaims = 0

    def perhaps() -> None:
        nonlocal reclaims
        kind = choose.randrange(4) if seed is not None else 3
        if kind == 3:
            return
        reclaims += offloader.suspend(20_000 if kind == 2 else None).freed_bytes > 0
        if kind == 1:
            float(next(model.parameters()).sum())
        offloader.restore()

    losses = []
    for _ in range(steps):
        perhaps()
        tokens = torch.randint(11, (4, 6), device="emu:1")
        with torch.autocast("emu", dtype=torch.float16, enabled=autocast):
            scores = model(tokens)
            loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), tokens.flatten())
        perhaps()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        perhaps()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        losses.append(loss.item())
    state = [p.detach().cpu() for p in model.parameters()]
    state += [v.cpu() for s in optimizer.state.values() for v in s.values()]
    state.append(torch.emu.get_rng_state("emu:1"))
    return [*losses, *seen], state, reclaims


def training_with_and_without(autocast: bool, steps: int) -> tuple[bool, int]:
    import torch

    plain = _train(steps, None, autocast)
    taken = _train(steps, 3, autocast)
    return plain[0] == taken[0] and all(map(torch.equal, plain[1], taken[1])), taken[2]


@pytest.mark.parametrize(("autocast", "steps"), [(False, 50), (True, 20)])
def test_training_does_not_notice(workers: list[Worker], autocast: bool, steps: int) -> None:
    equal, reclaims = workers[1].call(training_with_and_without, autocast, steps)
    assert equal
    assert reclaims > steps

"""What torch's own interfaces make of the emulated accelerator."""

from __future__ import annotations

from typing import Any

import pytest
from emulators.accelerator import Worker

# Whichever test comes first builds the library.
pytestmark = pytest.mark.timeout(600)


def accelerator_interface() -> dict[str, Any]:
    import torch

    torch.accelerator.set_device_index(1)
    facts: dict[str, Any] = {
        "type": str(torch.accelerator.current_accelerator()),
        "count": torch.accelerator.device_count(),
        "available": torch.accelerator.is_available(),
        "current": torch.accelerator.current_device_index(),
        "new tensor": str(torch.ones(1, device="emu").device),
        "name": torch.emu.get_device_name(),
    }
    torch.accelerator.set_device_index(0)
    with torch.accelerator.device_index(1), torch.emu.device(0):
        facts["inner"] = torch.accelerator.current_device_index()
    facts["after"] = torch.accelerator.current_device_index()
    torch.accelerator.synchronize()
    tensor = torch.ones(2).emu(1)
    facts["methods"] = (tensor.is_emu, tensor.device.index, torch.nn.Linear(1, 1).emu().bias.is_emu)
    return facts


def test_the_accelerator_interface_knows_the_devices(worker: Worker) -> None:
    facts = worker.call(accelerator_interface)
    assert "no GPU" in facts.pop("name")
    assert facts == {
        "type": "emu",
        "count": 2,
        "available": True,
        "current": 1,
        "new tensor": "emu:1",
        "inner": 0,
        "after": 0,
        "methods": (True, 1, True),
    }


def streams_and_events() -> None:
    import torch

    stream = torch.emu.Stream()
    before = torch.emu.current_stream()
    with torch.emu.stream(stream):
        assert torch.emu.current_stream() == stream != before
        tensor = torch.ones(3, device="emu")
        first = stream.record_event(torch.emu.Event(enable_timing=True))
    assert torch.emu.current_stream() == before
    tensor.record_stream(before)
    before.wait_event(first)
    last = before.record_event(torch.emu.Event(enable_timing=True))
    last.synchronize()
    assert first.query()
    assert first.elapsed_time(last) >= 0
    assert torch.Stream(device="emu:1").device == torch.device("emu:1")
    snapshot = torch.emu.memory_snapshot()
    [segment] = [s for s in snapshot if s["address"] == tensor.data_ptr()]
    assert segment["stream"] == stream.stream_id


def test_streams_and_events(worker: Worker) -> None:
    worker.call(streams_and_events)


def generators() -> None:
    import torch

    def numbers(device: str, **kw: Any) -> list[float]:
        return torch.randn(3, device=device, **kw).tolist()

    torch.manual_seed(4)
    zero, host = numbers("emu:0"), numbers("cpu")
    torch.manual_seed(4)
    numbers("cpu")
    one = numbers("emu:1")
    assert zero == one  # each device's generator stands where the seed put it
    torch.manual_seed(4)
    numbers("emu:0")
    assert numbers("cpu") == host  # drawing on a device leaves the CPU's numbers alone

    state = torch.emu.get_rng_state(1)
    assert state.device.type == "cpu"
    draws = [
        lambda: torch.rand(5, device="emu:1"),
        lambda: torch.nn.functional.dropout(torch.ones(64, device="emu:1"), 0.5),
        lambda: torch.randperm(9, device="emu:1"),
        lambda: torch.ones(9, device="emu:1").multinomial(4),
        lambda: torch.full((9,), 0.5, device="emu:1").bernoulli(),
        lambda: torch.empty(9, device="emu:1").exponential_(),
        lambda: torch.normal(torch.zeros(9, device="emu:1")),
    ]
    for draw in draws:
        torch.emu.set_rng_state(state, 1)
        expected = draw()
        moved = torch.emu.get_rng_state(1)
        assert not torch.equal(moved, state)
        torch.emu.set_rng_state(state, 1)
        assert torch.equal(draw(), expected)
        assert torch.equal(torch.emu.get_rng_state(1), moved)

    own = torch.Generator("emu:1").manual_seed(3)
    clone = own.clone_state()
    assert numbers("emu:1", generator=own) == numbers("emu:1", generator=clone)
    with torch.random.fork_rng(devices=[0, 1], device_type="emu"):
        inside = numbers("emu:0")
    assert numbers("emu:0") == inside
    with_host = None
    try:
        numbers("emu:0", generator=torch.Generator())
    except RuntimeError as error:
        with_host = str(error)
    assert "Expected a 'emu' device type for generator" in str(with_host)


def test_each_device_has_a_generator_whose_state_can_be_kept(worker: Worker) -> None:
    worker.call(generators)


def copies_of_things() -> None:
    import copy
    import io
    import pickle

    import torch

    base = torch.arange(12.0, device="emu:1").reshape(3, 4)
    view = base[1:]
    twin, part = copy.deepcopy((base, view))
    part.fill_(-1)
    assert (twin[1:] == -1).all().item()
    twin = pickle.loads(pickle.dumps(base))
    assert torch.equal(twin, base)
    assert twin.device == base.device
    assert twin.data_ptr() != base.data_ptr()
    assert base.sum().item() == 66

    file = io.BytesIO()
    torch.save({"base": base, "view": view}, file)
    for where, expected in ((None, "emu:1"), ("emu:0", "emu:0"), ("cpu", "cpu")):
        file.seek(0)
        loaded = torch.load(file, map_location=where)
        assert str(loaded["view"].device) == expected
        assert torch.equal(loaded["base"].cpu(), base.cpu())
        shared = loaded["base"].untyped_storage().data_ptr()
        assert loaded["view"].untyped_storage().data_ptr() == shared
    host = torch.empty(3, 4, pin_memory=True)
    assert torch.equal(host.copy_(base, non_blocking=True), base.cpu())
    assert torch.equal(base.to("emu:0").cpu(), base.cpu())
    assert torch.equal(torch.empty(4, 3, device="emu").t().copy_(base).cpu(), base.cpu())


def test_copy_pickle_save_and_load_keep_device_sharing_and_values(worker: Worker) -> None:
    worker.call(copies_of_things)


def pinned_memory() -> None:
    import torch

    pinned = torch.ones(1000).pin_memory()
    assert pinned.is_pinned()
    assert pinned[10:].is_pinned()
    assert not torch.ones(1000).is_pinned()
    address = pinned.data_ptr()
    del pinned
    assert torch.empty(1000, pin_memory=True).data_ptr() == address  # from the cache
    torch.accelerator.empty_host_cache()


def test_pinned_memory_is_recognised_and_cached(worker: Worker) -> None:
    worker.call(pinned_memory)


def views_and_resizes() -> None:
    import torch

    grid = torch.arange(12.0, device="emu").reshape(3, 4)
    for view in (
        grid.t(),
        grid[1],
        grid.view(4, 3),
        grid.unfold(0, 2, 1),
        torch.diagonal(grid),
        grid.view(torch.int32),
        torch.view_as_complex(grid.view(6, 2)),
        grid.expand(2, 3, 4),
        grid.chunk(2)[1],
    ):
        assert view.untyped_storage().data_ptr() == grid.untyped_storage().data_ptr()
        assert torch.equal(view.cpu(), view.clone().cpu())
    conjugate = torch.view_as_complex(grid.view(6, 2)).conj()
    assert torch.equal(conjugate.cpu(), torch.view_as_complex(grid.cpu().view(6, 2)).conj())
    grid[grid > 3] = 0
    grid[torch.tensor([0])] += 1  # indices may lie on the host
    assert grid.sum().item() == 10
    grid.resize_(100)
    assert grid.device == torch.device("emu:0")
    assert grid[:4].tolist() == [1, 2, 3, 4]
    storage = torch.UntypedStorage(100, device="emu:1")
    storage.resize_(5000)
    assert storage.nbytes() == 5000
    assert storage.device == torch.device("emu:1")
    assert "device='emu:0'" in repr(grid[:2])
    with torch.no_grad():
        other = torch.zeros(4, device="emu")
        other.set_(grid[:4])
        assert other.data_ptr() == grid.data_ptr()


def test_views_share_memory_and_resizing_stays_on_the_device(worker: Worker) -> None:
    worker.call(views_and_resizes)


def mixed_devices(left: str, right: str) -> str:
    import torch

    try:
        torch.ones(2, device=left) + torch.ones(2, device=right)
    except RuntimeError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    ("left", "right"), [("emu:0", "emu:1"), ("emu:0", "cpu"), ("cpu", "emu:1")]
)
def test_tensors_of_two_devices_do_not_mix(worker: Worker, left: str, right: str) -> None:
    assert "same device" in worker.call(mixed_devices, left, right)


def lost_device() -> list[str]:
    import torch

    there, elsewhere = torch.ones(4, device="emu:1"), torch.ones(4, device="emu:0")
    torch.emu.set_device_lost(1)
    said = []
    for use in (
        there.cpu,
        lambda: there.add_(1),
        lambda: torch.ones(1, device="emu:1"),
        lambda: torch.emu.synchronize(1),
    ):
        try:
            use()
        except torch.AcceleratorError as error:
            said.append(str(error))
    assert elsewhere.sum().item() == 4
    torch.emu.set_device_lost(1, False)
    assert there.sum().item() == 4
    return said


def test_a_lost_device_fails_every_use_and_no_other_device(worker: Worker) -> None:
    said = worker.call(lost_device)
    assert len(said) == 4
    assert all("device 1 is lost" in text for text in said)

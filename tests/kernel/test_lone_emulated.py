"""What the server tells a kernel about its GPU, in a real kernel on an emulated one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulators.accelerator import Devices
from lone_kernel import Kernel

# Whichever test comes first builds the accelerator.
pytestmark = pytest.mark.timeout(600)

MIB = 1 << 20
GRANT = {"epoch": 1, "bytes": 0}


@pytest.fixture(scope="module")
def devices(accelerator: None, tmp_path_factory: pytest.TempPathFactory) -> Devices:
    return Devices(tmp_path_factory.mktemp("machine") / "ledger", (256 * MIB,), 30 * MIB)


@pytest.fixture
def kernel(tmp_path: Path, devices: Devices) -> Iterator[Kernel]:
    # The kernel has no server: nobody hears its claims.
    lone = Kernel(
        tmp_path, devices.environ(), device="emu", gpu_uuid=devices.uuids[0], simulated=False,
        claim_deadline_s=1.0,
    )  # fmt: skip
    yield lone
    lone.close()


def bind(kernel: Kernel, devices: Devices, **more: Any) -> dict[str, Any]:
    content = {"gpu_uuid": devices.uuids[0], **GRANT, **more}
    return kernel.ask("gpu_bind_request", **content)


def test_the_context_is_there_before_the_cell_that_uses_it(
    kernel: Kernel, devices: Devices
) -> None:
    kernel.run("import torch")
    assert devices.used(0) == 0
    answer = bind(kernel, devices, warm=True)
    assert answer["status"] == "ok", answer
    assert devices.used(0) == 30 * MIB
    assert kernel.run("print(torch.emu.is_initialized(), torch.emu.memory_allocated())") == (
        "True 0\n"
    )


def test_a_kernel_without_torch_is_left_as_it_is(kernel: Kernel, devices: Devices) -> None:
    assert bind(kernel, devices, warm=True)["status"] == "ok"
    assert kernel.run("import sys; print('torch' in sys.modules)") == "False\n"


def test_a_cap_holds_from_the_first_allocation_and_can_be_moved(
    kernel: Kernel, devices: Devices
) -> None:
    take = "a = torch.ones({} << 20, dtype=torch.uint8, device='emu')"
    catch = "try:\n    {}\nexcept torch.OutOfMemoryError:\n    print('refused')"
    # Told before torch is there, it holds in the very cell that imports it.
    assert kernel.ask("gpu_cap_request", cap_bytes=64 * MIB)["reserved_bytes"] == 0
    assert kernel.run("import torch\n" + catch.format(take.format(100))) == "refused\n"
    kernel.run(take.format(40))
    kernel.ask("gpu_cap_request", cap_bytes=200 * MIB)
    kernel.run(take.format(100) + "\ndel a")
    # What the allocator only keeps is given back when the cap falls.
    assert kernel.ask("gpu_cap_request", cap_bytes=10 * MIB)["reserved_bytes"] == 0
    assert devices.used(0) == 30 * MIB


def test_the_random_generators_of_any_device_are_known_and_set(kernel: Kernel) -> None:
    kernel.run(
        "import torch\n"
        "from jupyter_gpu_predict.kernel import generators as g\n"
        "assert 'torch.emu' not in g.generator_states()\n"
        "torch.emu.init(); states = g.generator_states()\n"
        "assert g.unused_since_import('torch.emu', states['torch.emu'])\n"
        "with g.generators_as_they_are():\n"
        "    inside = torch.rand(4, device='emu').cpu()\n"
        "    assert not g.unused_since_import('torch.emu', g.generator_states()['torch.emu'])\n"
        "assert torch.equal(torch.rand(4, device='emu').cpu(), inside)\n"
        "assert not torch.equal(torch.rand(4, device='emu').cpu(), inside)\n"
        "g.set_generator_states(states)\n"
        "assert torch.equal(torch.rand(4, device='emu').cpu(), inside)"
    )


def test_a_cell_of_a_kernel_that_the_driver_has_claims_whatever_it_names(
    kernel: Kernel, devices: Devices
) -> None:
    assert kernel.run("print('at once')") == "at once\n"
    bind(kernel, devices, checkpointed=True)
    with pytest.raises(AssertionError, match="within 1 s"):
        kernel.run("print('too soon')")
    bind(kernel, devices)
    assert kernel.run("print('back')") == "back\n"

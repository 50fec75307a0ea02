"""What a kernel of the random sequences does, on a device or, for comparison, on the CPU.

Each function that changes a namespace gives the same bytes on both, so that a twin on the CPU
tells what the kernel's tensors must hold.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

Namespace = dict[str, Any]

NAMESPACE: Namespace = {}
"""The variables of this process's kernel."""

_offloaders: list[Any] = []


# --------------------------------------------------------------------------- kernel and twin alike


def begin(space: Namespace, device: str, seed: int) -> None:
    """Make a small network with its optimizer, trained one step."""
    import torch

    space.clear()
    torch.manual_seed(seed)
    layers = torch.nn.Linear(256, 512), torch.nn.Tanh(), torch.nn.Linear(512, 64)
    space["model"] = torch.nn.Sequential(*layers).to(device)
    space["optimizer"] = torch.optim.Adam(space["model"].parameters(), lr=1e-2, foreach=False)
    _step(space, device, seed)


def train(space: Namespace, device: str, seed: int) -> None:
    """Train one step; without memory for it everything is put back as it was."""
    import torch

    before = [(tensor, tensor.cpu().clone()) for tensor in _trained(space)]
    try:
        _step(space, device, seed)
    except torch.OutOfMemoryError:
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
        raise


def grow(space: Namespace, device: str, name: str, seed: int, nbytes: int) -> None:
    """Make a tensor and a view of it."""
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    block = torch.randint(256, (nbytes,), dtype=torch.uint8, generator=generator, device="cpu")
    space[name] = block.to(device)
    space[f"{name}.view"] = space[name][nbytes // 4 : nbytes // 2]


def change(space: Namespace, device: str, name: str, value: int) -> None:
    """Write to a tensor through its view."""
    space[f"{name}.view"].fill_(value)


def free(space: Namespace, device: str, name: str) -> None:
    """Delete a tensor and its view."""
    del space[name], space[f"{name}.view"]


def digests(space: Namespace, known: dict[str, Any] | None = None) -> dict[str, tuple[str, int]]:
    """Return digest and bytes of each tensor; those of `known` names are taken from there."""
    found = {f"trained {i}": _digest(tensor) for i, tensor in enumerate(_trained(space))}
    for name, tensor in space.items():
        if name not in {"model", "optimizer"}:
            found[name] = (known or {}).get(name) or _digest(tensor)
    return found


def _step(space: Namespace, device: str, seed: int) -> None:
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    batch = torch.rand((16, 256), generator=generator, device="cpu").to(device)
    # Gradients stay where they are, so that they are part of what must not be lost.
    space["optimizer"].zero_grad(set_to_none=False)
    (space["model"](batch) ** 2).mean().backward()
    space["optimizer"].step()


def _trained(space: Namespace) -> list[Any]:
    parameters = list(space["model"].parameters())
    state = space["optimizer"].state
    moments = [state[p][name] for p in parameters for name in ("exp_avg", "exp_avg_sq", "step")]
    return [*parameters, *(p.grad for p in parameters), *moments]


def _digest(tensor: Any) -> tuple[str, int]:
    array = tensor.detach().cpu().contiguous().numpy()
    return hashlib.sha256(memoryview(array).cast("B")).hexdigest()[:32], array.nbytes


# --------------------------------------------------------------------------- in the kernel only


def do(what: str, *args: Any) -> bool:
    """Carry out one of the functions above; ``False`` if the device has no memory for it."""
    import torch

    try:
        globals()[what](NAMESPACE, "emu", *args)
    except torch.OutOfMemoryError:
        torch.emu.empty_cache()
        return False
    return True


def own_digests() -> dict[str, tuple[str, int]]:
    """Return the digests of this kernel's tensors."""
    return digests(NAMESPACE)


def suspend(wanted_bytes: int | None) -> tuple[int, list[tuple[str, int]]]:
    """Take memory back in place; return the bytes freed and what was kept."""
    report = _offloader().suspend(wanted_bytes)
    return report.freed_bytes, list(report.kept)


def restore() -> bool:
    """Bring everything back; ``False`` if there is no room."""
    from jupyter_gpu_predict.errors import DeviceError

    try:
        _offloader().restore()
    except DeviceError:
        return False
    return True


def suspended_bytes() -> int:
    """Return the bytes that wait in host memory."""
    return int(_offloader().suspended_bytes)


def save(folder: str, name: str) -> str:
    """Save the namespace in a snapshot and return its id."""
    from jupyter_gpu_predict.snapshots.capture import capture
    from jupyter_gpu_predict.snapshots.signing import load_or_create_key
    from jupyter_gpu_predict.snapshots.stores import open_store

    report = capture(
        NAMESPACE,
        open_store(folder),
        load_or_create_key(Path(folder) / "key"),
        name=name,
        now_s=time.time(),
        kernel_id=name,
        digests=True,
    )
    faults = [v for v in report.variables if v.status != "saved"]
    assert not faults, faults
    return report.snapshot_id


def load(folder: str, snapshot_id: str) -> str:
    """Load a snapshot here; return why it could not be, ``""`` if it could."""
    import torch

    from jupyter_gpu_predict.snapshots.restore import restore as load_snapshot
    from jupyter_gpu_predict.snapshots.signing import load_or_create_key
    from jupyter_gpu_predict.snapshots.stores import open_store

    torch.emu.init()  # what a kernel on that device takes of it in any case
    key = load_or_create_key(Path(folder) / "key")
    report = load_snapshot(open_store(folder), snapshot_id, key, NAMESPACE, check=True)
    wrong = [v for v in report.variables if v.status != "restored"]
    return "; ".join(f"{v.name}: {v.reason}" for v in wrong)


def _offloader() -> Any:
    if not _offloaders:
        from jupyter_gpu_predict.kernel.offload import Offloader

        _offloaders.append(Offloader("emu", "/tmp"))
    return _offloaders[0]

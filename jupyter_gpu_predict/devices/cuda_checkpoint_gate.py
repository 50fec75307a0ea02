"""Whether a driver checkpoint may be begun, from what was looked up; each refusal has its name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..control.ports import RESUME_MARGIN_BYTES
from ..core.model import MIB, Rung
from ..core.sizes import format_bytes
from .cuda_checkpoint_facts import GpuFacts, Look, ProcessFacts
from .cuda_checkpoint_record import CheckpointRecord
from .cuda_checkpoint_steps import FREE_STATES, SENTENCES, ProcessState, reason_of

IPC_DRIVER = (610,)
"""First driver that checkpoints processes which share memory by CUDA IPC."""

MOVE_DRIVER = (580,)
"""First driver that restores to another GPU."""

BAD_DRIVERS: Mapping[tuple[int, ...], str] = {
    (570, 158): "checkpoints of PyTorch fail with it (NVIDIA/cuda-checkpoint issue 34)",
}
HOST_MARGIN_BYTES = 512 * MIB
HOST_MARGIN_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Traits:
    """What the kernel's agent knows of its process and nobody sees from outside; ``None``: unknown.

    Attributes
    ----------
    managed_memory
        Whether it allocated CUDA managed memory (UVM).
    ipc
        Whether it shares device memory with another process by CUDA IPC.
    """

    managed_memory: bool | None = None
    ipc: bool | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a checkpoint is not begun: a short name, a sentence, and the rung to try instead."""

    why: str
    message: str
    fallback: Rung


def refuse_suspend(
    look: Look, record: CheckpointRecord, traits: Traits, *, to_other_gpu: bool = False
) -> Refusal | None:
    """Return why the processes of `look` must not be suspended; ``None`` if they may.

    Parameters
    ----------
    to_other_gpu
        Whether the kernel is to come back on another GPU; then a relaunch is what is left, and
        else memory can be taken back in place.
    """
    other = Rung.RELAUNCH if to_other_gpu else Rung.IN_PLACE
    refusal = refuse_driver(look, other)
    if refusal is None and to_other_gpu:
        refusal = _refuse_move(look, record)
    if refusal is not None:
        return refusal
    failure = record.why_not(look.driver_version, "suspend")
    if failure is not None:
        return Refusal(
            "failed_before",
            f"A driver checkpoint of this kernel failed {failure.times} times under driver "
            f"{look.driver_version}: {SENTENCES.get(failure.why, failure.why)}. It is tried again "
            "under another driver.",
            other,
        )
    if not look.processes:
        return Refusal("no_cuda", "No process of the kernel uses CUDA: nothing to suspend.", other)
    return (
        _refuse_processes(look, other)
        or _refuse_sharing(look, traits, other)
        or _refuse_host(look, other)
    )


def refuse_driver(look: Look, other: Rung) -> Refusal | None:
    """Return why no process can be checkpointed on this machine."""
    if look.no_driver is not None:
        return Refusal(look.no_driver[0], look.no_driver[1], other)
    version = numbers(look.driver_version)
    for bad, why in BAD_DRIVERS.items():
        if version[: len(bad)] == bad:
            text = f"Driver {look.driver_version} is not used: {why}. Update the NVIDIA driver."
            return Refusal("driver_version", text, other)
    return None


def refuse_resume(
    look: Look, record: CheckpointRecord, gpu_map: Mapping[str, str] | None
) -> Refusal | None:
    """Return why the kernel's memory must not be brought back now; ``None`` if it may.

    A restore that runs out of device memory can leave drivers unable to ever restore the process
    (NVIDIA/cuda-checkpoint issue 44), so it is not begun where it would not fit.
    """
    if look.no_driver is not None:
        return Refusal(look.no_driver[0], look.no_driver[1], Rung.RELAUNCH)
    moves = {old: new for old, new in (gpu_map or {}).items() if old != new}
    used = {uuid for p in record.processes for uuid in p.gpus}
    if moves and used & set(moves):
        refusal = _refuse_move(look, record)
        if refusal is not None:
            return refusal
    by_uuid = {gpu.uuid: gpu for gpu in look.gpus}
    needed: dict[str, int] = {}
    for process in record.processes:
        if process.state is not ProcessState.CHECKPOINTED:
            continue
        for uuid, size in process.gpus.items():
            target = moves.get(uuid, uuid)
            refusal = _refuse_target(by_uuid, uuid, target)
            if refusal is not None:
                return refusal
            needed[target] = needed.get(target, 0) + size
    for target, size in needed.items():
        free = by_uuid[target].free_bytes
        # Who has the GPU for itself had all of it before.
        margin = RESUME_MARGIN_BYTES if by_uuid[target].processes else 0
        if free is not None and free < size + margin:
            return Refusal(
                "device_memory",
                f"GPU {target} has {format_bytes(free)} free, and {format_bytes(size)} of the "
                "kernel's memory are to come back. Take memory from another kernel first.",
                Rung.RELAUNCH,
            )
    return None


def full_map(
    moves: Mapping[str, str], look: Look, record: CheckpointRecord
) -> dict[str, str] | Refusal:
    """Return `moves` completed to a map of every GPU that the driver has.

    A GPU that is moved onto takes over, in exchange, one that was moved from; all others stay. One
    that was lost while the kernel's memory was out can be moved from and takes part in nothing.
    """
    listed = [gpu.uuid for gpu in look.gpus]
    held = {uuid for process in record.processes for uuid in process.gpus}
    unknown = sorted((set(moves) - held | set(moves.values())) - set(listed))
    if unknown:
        text = f"The driver lists no GPU {', '.join(unknown)}; it lists {', '.join(listed)}."
        return Refusal("gpu_map", text, Rung.RELAUNCH)
    if len(set(moves.values())) < len(moves):
        text = "Two GPUs are to become one: give each its own target."
        return Refusal("gpu_map", text, Rung.RELAUNCH)
    left = [uuid for uuid in moves if uuid not in moves.values() and uuid in listed]
    displaced = [uuid for uuid in moves.values() if uuid not in moves]
    exchange = dict(zip(displaced, left, strict=False))
    return {
        uuid: moves.get(uuid, exchange.get(uuid, uuid))
        for uuid in {**dict.fromkeys(listed), **moves}
    }


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a driver's version, e.g. ``(580, 95, 5)``."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _refuse_move(look: Look, record: CheckpointRecord) -> Refusal | None:
    version = numbers(look.driver_version)
    if version < MOVE_DRIVER:
        return Refusal(
            "driver_version",
            f"Driver {look.driver_version or 'unknown'} cannot restore to another GPU; "
            f"{MOVE_DRIVER[0]} can.",
            Rung.RELAUNCH,
        )
    failure = record.why_not(look.driver_version, "move")
    if failure is None:
        return None
    return Refusal(
        "failed_before",
        f"Moving this kernel by driver checkpoint failed {failure.times} times under driver "
        f"{look.driver_version}: {SENTENCES.get(failure.why, failure.why)}.",
        Rung.RELAUNCH,
    )


def _refuse_target(by_uuid: Mapping[str, GpuFacts], old: str, new: str) -> Refusal | None:
    target, source = by_uuid.get(new), by_uuid.get(old)
    if target is None:
        text = f"GPU {new}, on which the kernel's memory is to come back, is not there."
        return Refusal("gpu_lost", f"{text} Name another of the same chip.", Rung.RELAUNCH)
    if source is not None and source.chip != target.chip:
        text = f"GPU {new} ({target.chip}) is of another chip than GPU {old} ({source.chip})."
        return Refusal("chip", text, Rung.RELAUNCH)
    return None


def _refuse_processes(look: Look, other: Rung) -> Refusal | None:
    for process in look.processes:
        if process.uid != look.uid and not look.may_trace:
            text = (
                f"Process {process.pid} belongs to user {process.uid}, the server runs as "
                f"{look.uid}: it needs CAP_SYS_PTRACE, or the same user."
            )
            return Refusal("ownership", text, other)
        if process.state is ProcessState.UNKNOWN:
            why = reason_of(process.code) if process.code else "unknown"
            text = f"The driver does not tell the state of process {process.pid} ({why})."
            return Refusal("state", text, other)
        if process.state not in FREE_STATES:
            text = f"Process {process.pid} is {process.state.value} already, by somebody else."
            rung = Rung.RELAUNCH if process.state is ProcessState.FAILED else other
            return Refusal("state", text, rung)
    return None


def _refuse_sharing(look: Look, traits: Traits, other: Rung) -> Refusal | None:
    pids = {process.pid for process in look.processes}
    for gpu in look.gpus:
        mine = pids & {pid for pid, _ in gpu.processes}
        if mine & set(gpu.mps_pids):
            text = f"The kernel uses GPU {gpu.uuid} through MPS, which checkpoints do not support."
            return Refusal("mps", text, other)
        if gpu.mig and mine:
            text = f"GPU {gpu.uuid} is cut into MIG slices, which checkpoints do not support."
            return Refusal("mig", text, other)
    if traits.managed_memory:
        text = "The kernel has CUDA managed memory (UVM), which checkpoints do not support."
        return Refusal("managed_memory", text, other)
    if traits.ipc and numbers(look.driver_version) < IPC_DRIVER:
        text = "The kernel shares device memory with another process (CUDA IPC), which checkpoints "
        return Refusal("ipc", f"{text}support from driver {IPC_DRIVER[0]} on.", other)
    return None


def _refuse_host(look: Look, other: Rung) -> Refusal | None:
    needed = 0
    for process in look.processes:
        used = look.bytes_of(process.pid)
        if used is None:
            # NVML does not tell the process's share: all that its GPUs have in use is the bound.
            text = f"NVML does not tell how much device memory process {process.pid} has."
            return Refusal("device_memory_unknown", text, other)
        needed += used
    wanted = needed + max(HOST_MARGIN_BYTES, int(needed * HOST_MARGIN_SHARE))
    if look.host_bytes is None or look.host_bytes >= wanted:
        return None
    text = (
        f"{format_bytes(needed)} of device memory need {format_bytes(wanted)} of host memory, and "
        f"{format_bytes(look.host_bytes)} are available. Free host memory; taking the memory back "
        "in place can spill to disk."
    )
    return Refusal("host_memory", text, other)


def not_my_pids(processes: tuple[ProcessFacts, ...], record: CheckpointRecord) -> set[int]:
    """Return recorded pids that belong to other processes by now, or to none."""
    started = {p.pid: p.started for p in processes}
    return {p.pid for p in record.processes if started.get(p.pid) != p.started}

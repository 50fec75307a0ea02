"""What the doctor says of the driver's proof, and how it makes one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

from ..devices.cuda_checkpoint import CudaCheckpoint
from ..devices.cuda_checkpoint_proof import Proof, ProofFile
from ..devices.cuda_checkpoint_prove import BETWEEN, prove
from ..devices.doctor import Check
from ..devices.nvml import NvmlGpus
from ..errors import CheckpointFailedError, DeviceError
from .paths import Paths

NAME = "proof of driver checkpoints"
PROVE = "jupyter gpu doctor --prove"


def check_proof(paths: Paths) -> Check:
    """Check whether there is a proof, and whether it is of this driver and these GPUs."""
    gpus = NvmlGpus(environ={})
    try:
        statuses = gpus.read()
        version = gpus.driver_version
    finally:
        gpus.close()
    proof, fault = ProofFile(paths.checkpoint_proof).read()
    if not version:
        return Check(NAME, None, "There is no NVIDIA driver.")
    if proof is None:
        absent = not paths.checkpoint_proof.exists()
        why = "Nothing was tried yet: memory is taken back in place." if absent else f"{fault}."
        return Check(NAME, None if absent else False, why, PROVE)
    names = {status.name for status in statuses if not status.lost}
    for name in sorted(names):
        if (why_not := proof.why_not(version, name)) is not None:
            return Check(NAME, False, f"{why_not}.", PROVE)
    return Check(NAME, True, _sentence(proof))


def prove_checkpoints(paths: Paths, device: str, *, python: str = sys.executable) -> list[Check]:
    """Try driver checkpoints on this machine, keep what was found, and return it."""
    gpus = NvmlGpus(environ={})
    try:
        gpus.start()
        statuses, version = gpus.read(), gpus.driver_version
    except DeviceError as error:
        return [Check(NAME, False, str(error), "Prove it on the machine with the GPUs.")]
    finally:
        gpus.close()
    checkpoints = CudaCheckpoint(keep=lambda record: None)
    try:
        proof, tried = asyncio.run(
            prove(checkpoints, statuses, version, python=python, device=device)
        )
    except (DeviceError, CheckpointFailedError) as error:
        return [Check(NAME, False, str(error), "Mend that, and prove it again.")]
    file = ProofFile(paths.checkpoint_proof)
    file.write(proof)
    return [
        *(_tried(t.what, t.ok, t.said) for t in tried),
        Check(NAME, proof.between_cells, f"{_sentence(proof)} It is kept in {file.path}."),
    ]


def _tried(what: str, ok: bool | None, said: str) -> Check:
    remedy = "" if ok is not False else "Kernels go on being suspended in place."
    if what != BETWEEN and ok is False:
        remedy = "It is not done; the rest is not affected."
    return Check(f"driver checkpoint, {what}", ok, said, remedy)


def _sentence(proof: Proof) -> str:
    words = list(_abilities(proof))
    able = ", ".join(words) if words else "nothing"
    return (
        f"Proven under driver {proof.driver_version} on {', '.join(proof.gpus)}: {able}; "
        f"{proof.out_s_per_gib:.2f} s per GiB out, {proof.back_s_per_gib:.2f} s back."
    )


def _abilities(proof: Proof) -> Iterator[str]:
    if proof.between_cells:
        yield "between cells"
    if proof.mid_cell:
        yield "in the middle of a cell"
    if proof.move:
        yield f"to another GPU ({', '.join(proof.move)})"

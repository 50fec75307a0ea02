"""The proof: made by a real process with torch on emulated GPUs, kept, and believed or not."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from emulators.accelerator import NoCompilerError
from emulators.machine import EmulatedMachine

from jupyter_gpu_predict.core.model import MIB, GpuStatus
from jupyter_gpu_predict.devices.cuda_checkpoint import Assessment, CudaCheckpoint, Limits
from jupyter_gpu_predict.devices.cuda_checkpoint_proof import (
    FILE,
    Proof,
    ProofFile,
    this_machine,
)
from jupyter_gpu_predict.devices.cuda_checkpoint_prove import (
    BETWEEN,
    MID_CELL,
    MOVE,
    Tried,
    prove,
)
from jupyter_gpu_predict.errors import DeviceError

SLOW_MACHINE = Limits(start_s=120, look_s=120, state_s=60, lock_grace_s=60, copy_s=60)
DRIVER, GPU = "580.95.05", "Stub H200"
PROOF = Proof(DRIVER, "libcuda", (GPU,), True, True, (), 0.5, 0.25, 1000.0)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedMachine]:
    try:
        made = EmulatedMachine(tmp_path_factory.mktemp("machine"), capacity=256 * MIB)
    except NoCompilerError as error:
        pytest.skip(str(error))
    yield made
    made.close()


class Scripted(CudaCheckpoint):
    """Checkpoints whose driver is told what to do with the process that is tried."""

    machine: EmulatedMachine
    script: dict[str, Any]

    async def assess(self, kernel_id: str, root: int, **options: Any) -> Assessment:
        self.machine.script(root, **self.script)
        return await super().assess(kernel_id, root, **options)


def gpus(machine: EmulatedMachine) -> list[GpuStatus]:
    """The machine's GPUs as NVML would tell them."""
    return [
        GpuStatus(uuid, i, "Emulated", 256 * MIB, simulated=False, used_bytes=machine.used(i))
        for i, uuid in enumerate(machine.uuids)
    ]


def proven(
    machine: EmulatedMachine, only: int | None = None, **script: Any
) -> tuple[Proof, dict[str, Tried]]:
    driver = Scripted(
        lambda record: None, way="libcuda", limits=SLOW_MACHINE, environ=machine.environ
    )
    driver.machine, driver.script = machine, script
    proof, tried = asyncio.run(
        prove(driver, gpus(machine)[:only], DRIVER, device="emu", environ=machine.environ)
    )
    return proof, {t.what: t for t in tried}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ({"lie__checkpoint": 1}, "stayed as it was"),
        ({"error__restore": 304}, "operating system refused"),
    ],
    ids=["lies", "keeps"],
)
def test_a_driver_that_does_not_do_it_is_not_proven(
    machine: EmulatedMachine, script: dict[str, Any], said: str
) -> None:
    proof, tried = proven(machine, 1, **script)
    assert (proof.between_cells, proof.mid_cell, proof.move) == (False, False, ())
    assert said in tried[BETWEEN].said
    assert MID_CELL not in tried
    assert machine.used() == 0


def test_what_cannot_be_tried_is_said(machine: EmulatedMachine) -> None:
    driver = CudaCheckpoint(lambda record: None, limits=SLOW_MACHINE, environ=machine.environ)
    with pytest.raises(DeviceError, match="no GPU to try"):
        asyncio.run(prove(driver, [replace(gpus(machine)[0], lost=True)], DRIVER))
    for python in ("/nonexistent/python", "/bin/false"):
        with pytest.raises(DeviceError, match=r"--python"):
            asyncio.run(prove(driver, gpus(machine), DRIVER, python=python))


@pytest.mark.timeout(600)
def test_the_doctor_proves_a_driver_that_does_all_of_it(
    machine: EmulatedMachine, tmp_path: Path
) -> None:
    (tmp_path / "config").mkdir()
    settings = {"GpuPredict": {"torch_device": "emu"}}
    (tmp_path / "config" / "jupyter_server_config.json").write_text(json.dumps(settings))
    folders = {f"JUPYTER_{n}_DIR": str(tmp_path / n.lower()) for n in ("CONFIG", "DATA", "RUNTIME")}

    def doctor(*arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "jupyter_gpu_predict.cli", "doctor", "--json", *arguments],
            env={**machine.environ, **folders},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout, done.stderr
        return {check["name"]: check for check in json.loads(done.stdout)["checks"]}

    checks = doctor("--prove")
    assert [check["ok"] for check in checks.values()] == [True] * 4, checks
    path = tmp_path / "data" / "gpu-predict" / FILE
    assert path.stat().st_mode & 0o777 == 0o600
    proof, fault = ProofFile(path).read()
    assert fault == ""
    assert proof is not None
    assert (proof.mid_cell, proof.move) == (True, ("Emulated GPU (host memory)",))
    assert "every byte the same" in checks[f"driver checkpoint, {BETWEEN}"]["detail"]
    assert "No launch was lost" in checks[f"driver checkpoint, {MID_CELL}"]["detail"]
    assert machine.uuids[1] in checks[f"driver checkpoint, {MOVE}"]["detail"]
    # The process that was tried is gone, and took its memory with it.
    assert [machine.used(i) for i in range(2)] == [0, 0]


def test_a_proof_is_of_one_driver_and_its_gpus() -> None:
    assert PROOF.why_not(DRIVER, GPU) is None
    assert PROOF.why_not(DRIVER, GPU, mid_cell=True) is None
    assert "not under 610.1" in str(PROOF.why_not("610.1", GPU))
    assert "no driver that answers" in str(PROOF.why_not("", GPU))
    assert "not proven on H100" in str(PROOF.why_not(DRIVER, "H100"))
    assert f"another {GPU} is not" in str(PROOF.why_not_move(DRIVER, GPU))
    assert "in the middle" in str(
        replace(PROOF, mid_cell=False).why_not(DRIVER, GPU, mid_cell=True)
    )
    assert "rightly" in str(replace(PROOF, between_cells=False).why_not(DRIVER, GPU))


def test_a_move_is_proven_for_the_kinds_of_which_there_were_two() -> None:
    proof = replace(PROOF, gpus=(GPU, "Stub L4"), move=("Stub L4",))
    assert proof.why_not_move(DRIVER, "Stub L4") is None
    assert f"another {GPU} is not proven" in str(proof.why_not_move(DRIVER, GPU))


def test_what_was_proven_on_another_machine_is_not_believed(tmp_path: Path) -> None:
    here, there = (ProofFile(tmp_path / FILE, machine) for machine in ("here", "there"))
    here.write(PROOF)
    assert here.read() == (PROOF, "")
    proof, fault = there.read()
    assert proof is None
    assert "another machine" in fault
    assert "--prove" in fault


def test_a_machine_is_known_again_and_gives_no_name_away() -> None:
    assert this_machine() == this_machine()
    assert platform.node() not in this_machine()


def test_a_proof_on_disk_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file = ProofFile(tmp_path / "new" / FILE)
    assert file.read()[0] is None
    assert "--prove" in file.read()[1]
    file.write(PROOF)
    assert file.read() == (PROOF, "")
    file.write(replace(PROOF, driver_version="610.1"))
    proof, _ = file.read()
    assert proof is not None
    assert proof.driver_version == "610.1"
    assert [path.name for path in file.path.parent.iterdir()] == [FILE]


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"version": 1}', json.dumps({**PROOF.to_json(), "gpus": 1})]
)
def test_a_file_that_is_no_proof_proves_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / FILE
    path.write_text(text)
    path.chmod(0o600)
    proof, fault = ProofFile(path).read()
    assert proof is None
    assert str(path) in fault


def test_words_for_flags_and_a_file_open_to_others_prove_nothing(tmp_path: Path) -> None:
    path = tmp_path / FILE
    words = {**PROOF.to_json(), "between_cells": "false", "machine": this_machine()}
    path.write_text(json.dumps(words))
    path.chmod(0o600)
    proof, _ = ProofFile(path).read()
    assert proof is not None
    assert not proof.between_cells
    path.write_text(json.dumps(PROOF.to_json()))
    os.chmod(path, 0o666)
    proof, fault = ProofFile(path).read()
    assert proof is None
    assert "written by others" in fault

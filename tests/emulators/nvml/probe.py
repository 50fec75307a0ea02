"""Answers commands, one JSON object a line, with what `NvmlGpus` says in this process."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import Any

from jupyter_gpu_predict.devices.nvml import NvmlGpus
from jupyter_gpu_predict.devices.patience import Patience
from jupyter_gpu_predict.errors import GpuPredictError


def answer(gpus: NvmlGpus, command: dict[str, Any]) -> Any:
    """Carry out one command."""
    do = command.pop("do")
    if do == "read":
        return [asdict(status) for status in gpus.read()]
    if do == "start":
        gpus.start()
        return [gpus.driver_version, gpus.cuda_version]
    if do == "shut_down_elsewhere":
        import pynvml

        pynvml.nvmlShutdown()
        return None
    if do == "choose":
        from jupyter_gpu_predict.devices.choose import choose_backend

        backend, sentence = choose_backend(**command)
        backend.close()
        return [backend.name, sentence]
    if do == "doctor":
        from jupyter_gpu_predict.devices.doctor import check_devices

        return {check.name: asdict(check) for check in check_devices(**command)}
    if do == "environment":
        return gpus.environment(**command)
    if do == "script_health":
        return gpus.script_health(command["uuid"], lost=True)
    if do == "close":
        gpus.close()
        return None
    raise ValueError(do)


def main() -> None:
    """Read commands until the input ends."""
    gpus = NvmlGpus()
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "configure":
            gpus = NvmlGpus(
                Patience(**command["patience"]),
                clock=time.time,
                environ=command.get("environ"),
            )
            result = None
        else:
            try:
                result = answer(gpus, command)
            except GpuPredictError as error:
                result = {"error": error.reason, "message": str(error)}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

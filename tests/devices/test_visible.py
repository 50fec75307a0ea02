from __future__ import annotations

import pytest

from jupyter_gpu_predict.devices.visible import visible_uuids

LISTED = ["GPU-aa1", "GPU-ab2", "GPU-b3"]


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        (None, LISTED),
        ("", []),
        ("-1", []),
        ("0,1,2", LISTED),
        ("2,0", ["GPU-b3", "GPU-aa1"]),
        (" 1 , GPU-b3 ", ["GPU-ab2", "GPU-b3"]),
        ("1,9,0", ["GPU-ab2"]),
        ("1,-1,0", ["GPU-ab2"]),
        ("GPU-b", ["GPU-b3"]),
        ("GPU-a", []),
        ("0,0,1", ["GPU-aa1"]),
        ("MIG-x,0", []),
    ],
)
def test_the_variable_is_read_as_cuda_reads_it(setting: str | None, allowed: list[str]) -> None:
    assert visible_uuids(LISTED, setting) == allowed

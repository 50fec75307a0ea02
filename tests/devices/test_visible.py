from __future__ import annotations

import pytest

from jupyter_gpu_predict.devices.visible import visible_groups

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
    assert [uuid for group in visible_groups(LISTED, setting) for uuid in group] == allowed


@pytest.mark.parametrize(
    ("setting", "groups"),
    [
        (None, [["MIG-a", "MIG-b"], ["GPU-ab2"], []]),
        ("0", [["MIG-a", "MIG-b"]]),
        ("GPU-aa,1", [["MIG-a", "MIG-b"], ["GPU-ab2"]]),
        ("MIG-b,1", [["MIG-b"], ["GPU-ab2"]]),
        ("MIG-b,0,1", [["MIG-b"]]),
        ("MIG-", []),
        ("2,MIG-a", [[], ["MIG-a"]]),
    ],
)
def test_a_gpu_in_mig_mode_stands_for_its_slices(
    setting: str | None, groups: list[list[str]]
) -> None:
    slices = {"GPU-aa1": ["MIG-a", "MIG-b"], "GPU-b3": []}
    assert visible_groups(LISTED, setting, slices) == groups

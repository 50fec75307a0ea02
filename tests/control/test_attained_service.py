"""What a burst of cells has had of its GPU."""

from __future__ import annotations

from jupyter_gpu_predict.control.bursts import GAP_S, Burst


def test_a_burst_is_what_its_cells_have_run() -> None:
    burst = Burst()
    burst.cell_started(1000.0)
    assert burst.attained_s(1010.0) == 10.0
    burst.cell_ended(1000.0, 1010.0)
    assert burst.attained_s(1010.0 + GAP_S - 1) == 10.0
    assert burst.attained_s(1010.0 + GAP_S) == 0.0
    # A short cell is told of only when it is over.
    burst.cell_ended(1020.0, 1022.0)
    assert burst.attained_s(1022.0) == 12.0
    burst.cell_started(1030.0)
    burst.halt(1040.0)
    assert burst.attained_s(5000.0) == 22.0
    burst.go_on(5000.0)
    assert burst.attained_s(5003.0) == 25.0
    burst.cell_ended(1030.0, 5004.0)
    assert burst.attained_s(5004.0) == 26.0
    burst.cell_started(5004.0 + GAP_S)
    assert burst.attained_s(5005.0 + GAP_S) == 1.0

"""The peak of a cell is seen also when the memory is gone at its end."""

from __future__ import annotations

import time

import pytest

from jupyter_gpu_predict.kernel import memory
from jupyter_gpu_predict.kernel.memory import PeakMeter

torch = pytest.importorskip("torch")
MIB = 1 << 20


@pytest.fixture
def meter():
    made = PeakMeter("simulated")
    made.refresh()
    return made


def resettable() -> bool:
    return memory._reset_high_water()


def long_enough(meter) -> None:
    time.sleep(meter._cost_s / memory.SCAN_SHARE)


def test_what_a_cell_keeps_is_its_end_and_its_peak(meter):
    meter.begin()
    start = meter._start_used
    kept = torch.ones(32 * MIB // 4)
    long_enough(meter)
    peak = meter.end()
    assert peak.exact
    assert peak.end_bytes - start == 32 * MIB
    assert 32 * MIB <= peak.peak_bytes - start < 64 * MIB
    assert peak.host_peak_bytes > 32 * MIB
    del kept


def test_blocks_the_heap_keeps_after_a_free_count_as_transient(meter):
    if not resettable():
        pytest.skip("this system does not let the high-water mark be reset")
    anchor = torch.ones(1000)
    meter.refresh()
    meter.begin()
    start = meter._start_used
    blocks = [torch.ones(25_000) for _ in range(400)]
    last = torch.ones(25_000)
    del blocks
    peak = meter.end()
    assert 30_000_000 < peak.peak_bytes - start < 60_000_000
    del anchor, last


def test_what_a_cell_frees_again_is_in_its_peak(meter):
    if not resettable():
        pytest.skip("this system does not let the high-water mark be reset")
    anchor = torch.ones(1000)
    for size in (256, 64):
        meter.refresh()
        meter.begin()
        start = meter._start_used
        del_me = torch.ones(size * MIB // 4)
        del del_me
        long_enough(meter)
        peak = meter.end()
        assert peak.source == "storages+VmHWM"
        assert peak.end_bytes == start
        assert 0.8 * size * MIB < peak.peak_bytes - start < 1.5 * size * MIB
    del anchor


def test_a_short_cell_gets_the_last_figure_and_says_so(meter):
    kept = torch.ones(MIB)
    before = meter._used
    meter._cost_s = 1.0
    meter.begin()
    peak = meter.end()
    assert not peak.exact
    assert peak.end_bytes == before
    assert meter.refresh() >= before + 4 * MIB
    meter._cost_s = 1.0
    meter.begin()
    assert meter.end().end_bytes == meter._used
    del kept


def test_a_short_cell_that_takes_much_is_measured_all_the_same(meter):
    before = meter._used
    meter._cost_s = 1000.0
    meter.begin()
    kept = torch.ones(8 * MIB)
    took = meter.end()
    assert took.exact
    assert took.end_bytes == before + 32 * MIB
    assert took.peak_bytes >= before + 32 * MIB
    del kept


def test_without_a_reset_the_source_says_so(meter, monkeypatch):
    monkeypatch.setattr(memory, "_reset_high_water", lambda: False)
    kept = torch.ones(MIB)
    meter.begin()
    long_enough(meter)
    peak = meter.end()
    assert peak.source == "storages"
    assert peak.peak_bytes == peak.end_bytes >= 4 * MIB
    del kept


def test_a_cuda_meter_without_cuda_reports_nothing():
    meter = PeakMeter("cuda")
    meter.begin()
    peak = meter.end()
    assert (peak.peak_bytes, peak.end_bytes, peak.source) == (0, 0, "torch.cuda")
    assert meter.refresh() == 0

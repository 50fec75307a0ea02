"""Suspend and restore beside the least they could cost: one write, and one copy to fresh memory.

The baseline of suspending is writing the same bytes to a file in the same folder; the baseline of
restoring is copying them from that file's mapping into memory never touched before.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable

import torch

from jupyter_gpu_predict.kernel.memory import PeakMeter
from jupyter_gpu_predict.kernel.offload import Offloader, scan
from jupyter_gpu_predict.kernel.offload.simulated import trim_heap

CASES = {
    "10,000 x 40 kB": (10_000, 40_000),
    "1 x 800 MB": (1, 800_000_000),
}


def resident_mb() -> float:
    with open("/proc/self/status") as f:
        return next(int(x.split()[1]) for x in f if x.startswith("VmRSS")) / 1000


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def copy_only(tensors: list[torch.Tensor], folder: str) -> tuple[float, float]:
    """Write all bytes to a nameless file; copy them back into fresh memory."""
    fd = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    nbytes = [t.untyped_storage().nbytes() for t in tensors]
    total = sum(nbytes)

    def write() -> None:
        for start in range(0, len(tensors), 1024):
            left = [
                (ctypes.c_char * n).from_address(t.data_ptr())
                for t, n in zip(tensors[start : start + 1024], nbytes[start:], strict=False)
            ]
            wanted = sum(len(b) for b in left)
            if os.writev(fd, left) != wanted:
                raise OSError("short write: choose a folder with more room")

    out = timed(write)
    mapped = mmap.mmap(fd, total, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    os.close(fd)
    base = ctypes.addressof(ctypes.c_char.from_buffer(mapped))

    def read() -> list[torch.UntypedStorage]:
        fresh, offset = [], 0
        for n in nbytes:
            fresh.append(torch.UntypedStorage(n))
            ctypes.memmove(fresh[-1].data_ptr(), base + offset, n)
            offset += n
        return fresh

    return out, timed(read)


def measure(case: str, folder: str, repeats: int) -> list[dict[str, object]]:
    count, size = CASES[case]
    tensors = [torch.randn(size // 4) for _ in range(count)]
    sums = [t.sum().item() for t in tensors[:10]]
    offloader = Offloader("simulated", os.path.join(folder, "spill"))
    figures: dict[tuple[str, str], list[float]] = {}

    def note(method: str, metric: str, value: float) -> None:
        figures.setdefault((method, metric), []).append(value)

    def baseline() -> None:
        out, back = copy_only(tensors, folder)
        note("copy only", "out_s", out)
        note("copy only", "back_s", back)

    def offload() -> None:
        trim_heap()
        note("offload", "scan_s", timed(lambda: scan("simulated")))
        before = resident_mb()
        note("offload", "out_s", timed(offloader.suspend))
        during = resident_mb()
        note("offload", "back_s", timed(offloader.restore))
        note("offload", "resident_before_mb", before)
        note("offload", "resident_suspended_mb", during)
        note("offload", "resident_after_mb", resident_mb())

    # Whoever touches the machine's memory first pays for it: warm up, then take turns.
    copy_only(tensors, folder)
    for turn in range(repeats):
        for method in (baseline, offload) if turn % 2 else (offload, baseline):
            method()
    if [t.sum().item() for t in tensors[:10]] != sums:
        raise AssertionError(f"{case}: values changed")
    return [
        {
            "case": case,
            "method": method,
            "metric": metric,
            "value": statistics.median(values),
            "unit": "s" if metric.endswith("_s") else "MB",
        }
        for (method, metric), values in figures.items()
    ]


def measure_trivial_cells() -> list[dict[str, object]]:
    """Time what the peak meter adds to a cell that does nothing."""
    meter = PeakMeter("simulated")
    meter.refresh()
    costs = [timed(lambda: (meter.begin(), meter.end())) for _ in range(500)]
    value = statistics.median(costs) * 1000
    return [
        {
            "case": "trivial cell",
            "method": "peak meter",
            "metric": "added_ms",
            "value": value,
            "unit": "ms",
        }
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="PATH", help="write the rows to PATH")
    parser.add_argument("--quick", action="store_true", help="two turns instead of five")
    parser.add_argument("--folder", help="where to spill; a temporary folder by default")
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for case in CASES:
            rows += measure(case, folder, 2 if arguments.quick else 5)
            gc.collect()
    rows += measure_trivial_cells()
    print(f"{'case':<16} {'method':<11} {'metric':<22} {'median':>10}")
    for row in rows:
        print(
            f"{row['case']:<16} {row['method']:<11} {row['metric']:<22} "
            f"{row['value']:>10.3f} {row['unit']}"
        )
    if arguments.json:
        with open(arguments.json, "w") as f:
            json.dump(rows, f, indent=1)


if __name__ == "__main__":
    main()

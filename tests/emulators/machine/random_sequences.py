"""Random reclaims, restores and moves of kernels on emulated GPUs, under memory pressure.

    python tests/emulators/machine/random_sequences.py --sequences 200 --seed 1

Eight processes with the real offload engine share four emulated GPUs. They train, allocate, write
and free; their memory is taken back in place, wholly or in part, and returned; they are moved by a
real snapshot into a fresh process on another GPU; they are suspended by the driver's checkpoint,
whose helper is killed now and then. A twin on the CPU tells what each tensor must hold. Printed is
a JSON object: bytes lost, kernels that died, and capacity violations must all be 0.

No GPU is used: devices, driver and NVML are stand-ins, their memory is host memory.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from emulators.machine.crowd import MIB, Crowd, Kernel

OPERATIONS = {
    "grow": 8,
    "change": 4,
    "train": 5,
    "free": 3,
    "reclaim": 5,
    "partial reclaim": 4,
    "restore": 6,
    "two at once": 4,
    "move": 1,
}
LENGTH = 15
CAPACITY = 160 * MIB


class Watch(threading.Thread):
    """Looks at the ledger all the time and counts moments at which a GPU held too much."""

    def __init__(self, crowd: Crowd) -> None:
        super().__init__(daemon=True)
        self._crowd = crowd
        self._over = threading.Event()
        self.violations = 0
        self.looks = 0

    def run(self) -> None:
        """Look until `end`."""
        while not self._over.wait(0.05):
            self.look()

    def look(self) -> None:
        """Look once."""
        devices = self._crowd.machine.devices
        for gpu, capacity in enumerate(devices.capacities):
            self.violations += devices.used(gpu) > capacity
        self.looks += 1

    def end(self) -> None:
        """Stop."""
        self._over.set()
        self.join()


def run(
    folder: Path,
    sequences: int,
    seed: int,
    kernels: int,
    gpus: int,
    driver_share: float,
    first: int = 0,
) -> dict[str, Any]:
    """Run the sequences and return what came of them."""
    began = time.perf_counter()
    crowd = Crowd(folder, kernels=kernels, gpus=gpus, capacity=CAPACITY)
    watch = Watch(crowd)
    watch.start()
    try:
        for number in range(first, first + sequences):
            # Each sequence can be repeated alone: it depends on its own seed only.
            dice = random.Random(seed * 1_000_003 + number)
            _sequence(crowd, watch, dice, driver_share)
            if (number + 1) % 10 == 0:
                print(f"sequence {number}: {crowd.faults}", file=sys.stderr, flush=True)
    finally:
        watch.end()
        crowd.close()
    return {
        "first": first,
        "sequences": sequences,
        "seed": seed,
        "kernels": kernels,
        "gpus": gpus,
        "lost_bytes": crowd.lost_bytes,
        "dead_kernels": crowd.dead,
        "capacity_violations": watch.violations,
        "faults": crowd.faults[:20],
        "bytes_compared": crowd.compared_bytes,
        "looks_at_the_ledger": watch.looks,
        "done": dict(sorted(crowd.done.items())),
        "seconds": round(time.perf_counter() - began, 1),
        "emulated": True,
    }


def _sequence(crowd: Crowd, watch: Watch, dice: random.Random, driver_share: float) -> None:
    crowd.begin(dice)
    for _ in range(LENGTH):
        watch.look()
        kernel = dice.choice(crowd.kernels)
        if kernel.with_driver:
            if dice.random() < 0.3:
                crowd.resume_by_driver(kernel, dice)
            continue
        if dice.random() < driver_share:
            crowd.suspend_by_driver(kernel, dice)
            continue
        what = dice.choices(list(OPERATIONS), list(OPERATIONS.values()))[0]
        if what == "two at once":
            free = [k for k in crowd.kernels if not k.with_driver]
            crowd.together(dice.sample(free, min(2, len(free))), dice)
        else:
            _operate(crowd, kernel, what, dice)
        crowd.compare(kernel)
    for kernel in crowd.kernels:
        if kernel.with_driver:
            crowd.resume_by_driver(kernel, dice)
        crowd.compare(kernel)


def _operate(crowd: Crowd, kernel: Kernel, what: str, dice: random.Random) -> None:
    if what == "reclaim":
        crowd.reclaim(kernel, None)
    elif what == "partial reclaim":
        crowd.reclaim(kernel, dice.randint(1, 40 * MIB))
    elif what == "restore":
        crowd.restore(kernel)
    elif what == "move":
        crowd.move(kernel, dice)
    else:
        crowd.work(kernel, *kernel.choose(what, dice))


def main() -> int:
    """Parse the options, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sequences", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first sequence")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kernels", type=int, default=8)
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument(
        "--driver-share", type=float, default=0.006, help="share of operations by the driver"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="random-sequences-") as folder:
        result = run(
            Path(folder),
            options.sequences,
            options.seed,
            options.kernels,
            options.gpus,
            options.driver_share,
            options.first,
        )
    print(json.dumps(result, indent=1))
    bad = result["lost_bytes"] or result["dead_kernels"] or result["capacity_violations"]
    return 1 if bad or result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())

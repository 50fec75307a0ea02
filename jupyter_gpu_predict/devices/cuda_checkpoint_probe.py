"""A program with nothing to lose that holds device memory, for `cuda_checkpoint_prove`.

Run as ``python -c SOURCE DEVICE BYTES``; it imports nothing but torch. Each line of
its input is a word that it answers with a line: ``check`` whether every byte is as it was,
``work`` once it launches one kernel after the other, ``stop`` whether each of them was counted.
Where its input ends it ends, even in the middle of a call that does not return.
"""

from __future__ import annotations

import os
import queue
import sys
import threading

STEP = 1 << 22


def main(device: str, size: int) -> None:
    """Hold memory and answer."""
    import torch

    words: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            words.put(line.strip())
        os._exit(0)

    def same() -> bool:
        parts = range(0, len(held), STEP)
        return held.data_ptr() == address and all(
            torch.equal(held[i : i + STEP].cpu(), expected[i : i + STEP]) for i in parts
        )

    threading.Thread(target=listen, daemon=True).start()
    expected = torch.arange(size // 4, dtype=torch.int32)
    held = expected.to(device)
    address = held.data_ptr()
    some, launched = torch.zeros(1 << 16, device=device), 0
    print("ready", flush=True)
    while True:
        word = words.get()
        if word == "check":
            print("right" if same() else "wrong", flush=True)
        elif word == "work":
            begun = launched
            while words.empty():
                some += 1
                launched += 1
                if launched - begun == 100:
                    print("working", flush=True)
        elif word == "stop":
            counted = bool((some.cpu() == float(launched)).all())
            print("right" if counted and same() else "wrong", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

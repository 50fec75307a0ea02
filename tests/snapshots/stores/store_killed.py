"""Kill a process that saves, deletes and collects, at random moments, and look what is left.

Arguments: the folder, and how often. Run as a process of its own, as it forks.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time

from store_saves import another, check, new_id, save

from jupyter_gpu_predict.snapshots.stores import garbage, open_store

POOL = [random.randbytes(random.choice([10, 3000, 200_000])) for _ in range(12)]


def work(store, events):
    """Save, delete and collect for ever, telling what was done."""
    mine = [info.snapshot_id for info in store.list()]
    while True:
        what = random.random()
        if what < 0.6 or not mine:
            snapshot_id = new_id()
            fresh = [random.randbytes(random.choice([100, 50_000, 2_000_000]))]
            save(store, random.sample(POOL, 4) + fresh, snapshot_id, created_s=time.time())
            os.write(events, f"saved {snapshot_id}\n".encode())
            mine.append(snapshot_id)
        elif what < 0.9:
            snapshot_id = mine.pop(random.randrange(len(mine)))
            os.write(events, f"delete {snapshot_id}\n".encode())
            store.delete(snapshot_id)
        else:
            store.collect_garbage()


def examine(path, expected, perhaps_gone):
    """Check that all of the store is whole and no snapshot is missing; return those there."""
    store = open_store(path)
    found = {info.snapshot_id for info in store.list()}
    manifests = {entry.name for entry in store._backend.entries("manifests")}
    assert len(manifests) == len(found), "a manifest cannot be read"
    assert expected - perhaps_gone <= found, "a snapshot is missing"
    for snapshot_id in found:
        check(store, snapshot_id)
    store.collect_garbage()
    assert not list(store.path.glob("*/.*")), "a temporary file was left"
    for snapshot_id in found:
        check(another(store), snapshot_id)
    return found


def main(path, rounds):
    garbage.COMPACT_BYTES = 10_000
    store = open_store(path)
    last, _ = save(store, POOL)
    known = {last}
    for number in range(rounds):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            random.seed(number)
            work(open_store(path), write)
        os.close(write)
        time.sleep(random.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(read) as events:
            lines = [line.split() for line in events]
        saved = {snapshot_id for what, snapshot_id in lines if what == "saved"}
        deleted = {snapshot_id for what, snapshot_id in lines if what == "delete"}
        known = examine(path, known | saved, deleted)
        if not known:
            known = {save(open_store(path), POOL)[0]}
        while len(known) > 8:
            open_store(path).delete(known.pop())
    print(f"{rounds} kills")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

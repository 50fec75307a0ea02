"""Several processes that save, delete and collect in one store, with chunks in common.

Arguments: the URL, how many processes, and how often each does something.
"""

from __future__ import annotations

import os
import random
import sys
import traceback

from store_saves import another, check, new_id, save

from jupyter_gpu_predict.snapshots.stores import garbage, open_store

# The same in all processes, so that each relies on chunks that another gives up.
POOL = [random.Random(n).randbytes(20_000 + n) for n in range(6)]


def work(url, count):
    garbage.COMPACT_BYTES = 1000
    store = open_store(url)
    mine = []
    for number in range(count):
        if random.random() < 0.5 or not mine:
            snapshot_id = new_id(number)
            save(store, random.sample(POOL, 2), snapshot_id)
            mine.append(snapshot_id)
        else:
            store.delete(mine.pop(random.randrange(len(mine))))
        if number % 4 == 0:
            store.collect_garbage()
        if mine:
            check(store, random.choice(mine))


def main(url, processes, count):
    store = open_store(url)  # imports what children need, and asks nothing yet
    children = []
    for _ in range(processes):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                random.seed(os.getpid())
                work(url, count)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * processes
    infos = store.list()
    for info in infos:
        check(store, info.snapshot_id)
    store.collect_garbage()
    for info in infos:
        check(another(store), info.snapshot_id)
    for info in infos:
        store.delete(info.snapshot_id)
    assert store._backend.entries("packs") == []
    print(len(infos), "whole")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

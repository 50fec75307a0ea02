"""Kill a process that saves, restores or collects, at random moments, and look what is left.

Arguments: the folder, and how often each is to be hit. Run as a process of its own, as it forks.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import types

from store_saves import another, check

from jupyter_gpu_predict.snapshots import capture, open_store, restore
from jupyter_gpu_predict.snapshots.inspect.verify import verify
from jupyter_gpu_predict.snapshots.stores import garbage

KEY = bytes(range(32))


def state(own, former, new):
    """Return a session, from the seeds of what only it, the one before and the next one have."""
    big = bytearray(random.Random(own).randbytes(300_000))
    return {
        **types.ModuleType("__main__").__dict__,
        "seeds": (own, former, new),
        "big": big,
        "again": [big],
        "former": bytearray(random.Random(former).randbytes(150_000)),
        "new": bytearray(random.Random(new).randbytes(150_000)),
        "items": [{own}, list(range(50))],
    }


def save(store, tell):
    """Save a session that shares memory with the latest one."""
    known = store.list()
    own, new = random.getrandbits(32), random.getrandbits(32)
    session = state(own, known[-1].labels["new"] if known else 0, new)
    report = capture(
        session, store, KEY, name="one", now_s=time.time(), kernel_id="k", labels={"new": new}
    )
    tell("saved", report.snapshot_id)


def saving(store, tell):
    tell("begin")
    save(store, tell)
    tell("end")


def restoring(store, tell):
    snapshot_id = store.list()[-1].snapshot_id
    tell("begin")
    restore(store, snapshot_id, KEY, {})
    tell("end")


def collecting(store, tell):
    """Collect what a snapshot leaves behind of which the next one needs a part."""
    save(store, tell)
    gone = store.list()[0].snapshot_id
    tell("delete", gone)
    store._backend.delete(f"manifests/{gone}.json")
    tell("begin")
    store.collect_garbage()
    tell("end")


WORK = {"save": saving, "restore": restoring, "collect": collecting}


def usual_s(path, kind):
    """Return how long the work takes."""
    times = []
    for _ in range(5):
        at = {}
        WORK[kind](open_store(path), lambda what, *_, at=at: at.update({what: time.monotonic()}))
        times.append(at["end"] - at["begin"])
    return sorted(times)[2]


def kill(path, kind, within_s):
    """Kill a child at its work; return what it has told, and whether it had not ended."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        random.seed(os.getpid())

        def tell(*words):
            os.write(write, " ".join(words).encode() + b"\n")

        try:
            store = open_store(path)
            while True:
                WORK[kind](store, tell)
        finally:
            os._exit(1)
    os.close(write)
    told = b""
    while b"begin" not in told:
        told += os.read(read, 65536) or sys.exit("the child ended by itself")
    time.sleep(random.uniform(0.0, within_s))
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    with os.fdopen(read, "rb") as rest:
        lines = [line.split() for line in (told + rest.read()).decode().splitlines()]
    return {
        "saved": {words[1] for words in lines if words[0] == "saved"},
        "deleted": {words[1] for words in lines if words[0] == "delete"},
        "hit": lines[-1][0] == "begin",
    }


def files(store):
    return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in store.path.glob("*/*")}


def examine(store, expected, perhaps_gone):
    """Check that all of the store is whole and no snapshot is missing; return those there."""
    found = [info.snapshot_id for info in store.list()]
    manifests = store._backend.entries("manifests")
    assert len(manifests) == len(found), "a manifest cannot be read"
    assert expected - perhaps_gone <= set(found), "a snapshot is missing"
    for snapshot_id in found:
        namespace = {}
        restore(store, snapshot_id, KEY, namespace)
        right = state(*namespace["seeds"])
        assert all(namespace[name] == right[name] for name in ("big", "former", "new", "items"))
        assert namespace["again"][0] is namespace["big"]
    store.collect_garbage()
    assert not list(store.path.glob("*/.*")), "a temporary file was left"
    for snapshot_id in found:
        check(another(store), snapshot_id)
    return found


def main(path, rounds):
    garbage.COMPACT_BYTES = 10_000
    save(open_store(path), lambda *_: None)
    within_s = {kind: usual_s(path, kind) for kind in WORK}
    known = examine(open_store(path), set(), set())
    hits = dict.fromkeys(WORK, 0)
    for _ in range(3 * rounds):
        for kind in [kind for kind in WORK if hits[kind] < rounds]:
            store = open_store(path)
            before = files(store)
            told = kill(path, kind, within_s[kind])
            hits[kind] += told["hit"]
            if kind == "restore":
                assert files(store) == before, "a restore changed the store"
            known = examine(store, {*known, *told["saved"]}, told["deleted"])
            assert known, "the last snapshot is gone"
            while len(known) > 2:
                store.delete(known.pop(0))
    assert verify(open_store(path), known[-1], KEY).verified
    assert all(hit > rounds // 10 for hit in hits.values()), hits
    print(f"kills in the midst: {hits}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

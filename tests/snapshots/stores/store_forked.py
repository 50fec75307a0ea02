"""A store that was used, then used by forked children which have let go of all files.

Arguments: the URL. A process of its own, as the libraries of stores have threads.
"""

from __future__ import annotations

import os
import sys
import warnings

from store_saves import check, new_id, save, some

from jupyter_gpu_predict.snapshots.background import let_go_of_files
from jupyter_gpu_predict.snapshots.stores import open_store

warnings.simplefilter("ignore")
store = open_store(sys.argv[1])
shared = some(10_000)
save(store, shared)
ids = [new_id(), new_id()]
children = []
for snapshot_id in ids:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            let_go_of_files()
            save(store, shared + some(5 << 20), snapshot_id)
            check(store, snapshot_id)
            code = 0
        finally:
            os._exit(code)
    children.append(child)
save(store, some(1000))
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
for snapshot_id in ids:
    check(store, snapshot_id)
print(len(store.list()), "snapshots")

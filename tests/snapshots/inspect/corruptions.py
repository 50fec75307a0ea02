"""A store of two snapshots, and ways to break the second of them."""

from __future__ import annotations

import json
import types

from jupyter_gpu_predict.errors import (
    NotFoundError,
    SnapshotDamagedError,
    SnapshotIncompleteError,
    SnapshotRefusedError,
    SnapshotSignatureError,
    SnapshotVersionError,
)
from jupyter_gpu_predict.snapshots import capture, open_store
from jupyter_gpu_predict.snapshots.chunks import chunk_name
from jupyter_gpu_predict.snapshots.inspect.report import read_report
from jupyter_gpu_predict.snapshots.signing import sign
from jupyter_gpu_predict.snapshots.stores import packs

KEY = bytes(range(32))

woken: list[str] = []


def wake(name):
    """Leave a mark: the stream in which this is called was unpickled."""
    woken.append(name)
    return Canary(name)


class Canary:
    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return wake, (self.name,)


CODE = """
import numpy as np
array = np.arange(140_000.0)
view = array[10:2000:3]
names = {"one": [1, 2.5, None], "two": {"a", "b", 3}}
same = names["one"]
class Point:
    def __init__(self, x):
        self.x = x
points = [Point(i) for i in range(20)]
def double(x):
    return 2 * x
items = [[i] for i in range(1500)]
references = items[::-1]
"""


class BreakableStore:
    """Two snapshots in one store, the second of them with a patched stream, and their values."""

    def __init__(self, path):
        self.path = path
        self.namespace = dict(types.ModuleType("__main__").__dict__)
        exec(CODE, self.namespace)
        self.namespace["canary"] = Canary("bird")
        self.ids = []
        for count in range(2):
            self.namespace["items"].insert(5, [-1])
            self.namespace["count"] = count
            self.ids.append(self.save())
        self.files = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
        self.packs = [p for p in self.files if p.suffix == ".pack"]
        self.broken = self.ids[1]
        self.manifest = path / "manifests" / f"{self.broken}.json"
        self.document = json.loads(self.files[self.manifest])
        assert self.document["manifest"]["patched"]
        self.places = {}
        for pack in self.packs:
            backend, size = open_store(path)._backend, pack.stat().st_size
            index = packs.read_index(backend, f"packs/{pack.name}", size)
            self.places.update({name: (pack, *place) for name, place in index.items()})
        self.wanted = {
            name for blob in self.document["manifest"]["blobs"] for name, _ in blob
        } & set(self.chunks())

    def save(self):
        store = open_store(self.path)
        report = capture(
            self.namespace, store, KEY, name="one", now_s=1.7e9, kernel_id="k", digests=False
        )
        store.write_note(report.snapshot_id, "verified", {"verified": True})
        return report.snapshot_id

    def chunks(self):
        """Return pack, offset and length of each chunk."""
        return self.places

    def rewrite(self, pack, contents):
        """Write a pack anew that says it holds these chunks."""
        index, data = {}, b""
        for name, chunk in contents.items():
            index[name] = (len(data), len(chunk))
            data += chunk
        pack.write_bytes(data + bytes(packs.footer(index)))

    def contents(self, pack):
        data = self.files[pack]
        places = {n: where for n, where in self.chunks().items() if where[0] == pack}
        return {n: data[o : o + size] for n, (_, o, size) in places.items()}

    def resign(self, key=KEY, **changes):
        manifest = {**self.document["manifest"], **changes}
        self.manifest.write_text(json.dumps(sign(manifest, key)))

    def mend(self):
        for path, data in self.files.items():
            if not path.exists() or path.read_bytes() != data:
                path.write_bytes(data)


# ------------------------------------------------------------------ ways to break it


def flip_a_bit(store, rng, path):
    data = bytearray(store.files[path])
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def flip_in_manifest(store, rng):
    flip_a_bit(store, rng, store.manifest)


def flip_in_pack(store, rng):
    flip_a_bit(store, rng, rng.choice(store.packs))


def flip_in_index(store, rng):
    pack = rng.choice(store.packs)
    data = bytearray(store.files[pack])
    length = sum(len(c) for c in store.contents(pack).values())
    data[rng.randrange(length, len(data))] ^= 1 << rng.randrange(8)
    pack.write_bytes(data)


def truncate_manifest(store, rng):
    data = store.files[store.manifest]
    store.manifest.write_bytes(data[: rng.randrange(len(data))])


def truncate_pack(store, rng):
    pack = rng.choice(store.packs)
    data = store.files[pack]
    pack.write_bytes(data[: rng.randrange(len(data))])


def append_to_pack(store, rng):
    pack = rng.choice(store.packs)
    pack.write_bytes(store.files[pack] + rng.randbytes(rng.randrange(1, 50)))


def append_to_manifest(store, rng):
    store.manifest.write_bytes(store.files[store.manifest] + rng.randbytes(rng.randrange(1, 9)))


def lose_manifest(store, rng):
    store.manifest.unlink()
    return NotFoundError


def lose_pack(store, rng):
    rng.choice([p for p in store.packs if store.wanted & store.contents(p).keys()]).unlink()
    return SnapshotIncompleteError


def lose_chunk(store, rng):
    name = rng.choice(sorted(store.wanted))
    pack = store.chunks()[name][0]
    contents = store.contents(pack)
    del contents[name]
    store.rewrite(pack, contents)
    return SnapshotIncompleteError


def exchange_chunks(store, rng):
    places = store.chunks()
    alone = [n for n in store.wanted if len(store.contents(places[n][0])) == 1]
    name = rng.choice(sorted(store.wanted - set(alone)))
    pack = places[name][0]
    contents = store.contents(pack)
    other = rng.choice(sorted(contents.keys() - {name}))
    contents[name], contents[other] = contents[other], contents[name]
    store.rewrite(pack, contents)
    return SnapshotDamagedError


def change_chunk(store, rng):
    name = rng.choice(sorted(store.wanted))
    pack = store.chunks()[name][0]
    contents = store.contents(pack)
    contents[name] = rng.randbytes(len(contents[name]))
    store.rewrite(pack, contents)
    return SnapshotDamagedError


def exchange_packs(store, rng):
    first, second = rng.sample(store.packs, 2)
    first.write_bytes(store.files[second])
    second.write_bytes(store.files[first])
    return  # they are found by their contents


def exchange_manifests(store, rng):
    other = store.path / "manifests" / f"{store.ids[0]}.json"
    store.manifest.write_bytes(store.files[other])
    return SnapshotRefusedError


def sign_with_another_key(store, rng):
    store.resign(rng.randbytes(32))
    return SnapshotSignatureError


def remove_signature(store, rng):
    document = dict(store.document)
    document["signature"] = rng.choice([None, "", 5, "hmac-sha256:", "none", ["x"], "é" * 70])
    if rng.random() < 0.3:
        del document["signature"]
    store.manifest.write_text(json.dumps(document))
    return SnapshotSignatureError


def edit_manifest(store, rng):
    """Change one value anywhere in the manifest, leaving the signature as it is."""
    document = json.loads(store.files[store.manifest])
    holder, key = document, "manifest"
    while isinstance(holder[key], (dict, list)) and holder[key]:
        holder = holder[key]
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    before = holder[key]
    options = [0, -1, 2**40, "x", "../../etc/passwd", None, [], {}, True, 1.5]
    holder[key] = rng.choice([o for o in options if json.dumps(o) != json.dumps(before)])
    store.manifest.write_text(json.dumps(document))
    return SnapshotSignatureError


def write_another_document(store, rng):
    text = rng.choice(["[]", "3", "null", "{}", '{"manifest": 3}', "[" * 100_000, '"x"', "\x00"])
    store.manifest.write_text(text)
    return SnapshotRefusedError


def claim_another_version(store, rng):
    change = rng.choice([{"format": 3}, {"format": 99}, {"format": None}, {"python": "3.99"}])
    store.resign(**change)
    return SnapshotVersionError


def forge_a_chunk(store, rng):
    """Put a stream of one's own into the store under its right name, and point to it."""
    payload = b"c" + b"corruptions\nwake\n(S'forged'\ntR."
    manifest = json.loads(json.dumps(store.document["manifest"]))
    manifest["blobs"].append([[chunk_name(payload), len(payload)]])
    group = rng.choice(manifest["groups"])
    group.update(blob=len(manifest["blobs"]) - 1, offset=0, nbytes=len(payload))
    pack = store.packs[0]
    store.rewrite(pack, {**store.contents(pack), chunk_name(payload): payload})
    store.manifest.write_text(json.dumps({**store.document, "manifest": manifest}))
    return SnapshotSignatureError


def spoil_note(store, rng):
    note = store.path / "notes" / f"{store.broken}.verified.json"
    text = rng.choice([b"", b"{", rng.randbytes(30), b"[" * 100_000, b'{"verified": 7}'])
    note.write_bytes(text)
    assert read_report(open_store(store.path), store.broken, KEY) is None
    return


ANY = (SnapshotRefusedError, type(None))
WAYS = {
    flip_in_manifest: ANY,
    flip_in_pack: ANY,
    flip_in_index: ANY,
    truncate_manifest: (SnapshotDamagedError,),
    truncate_pack: ANY,
    append_to_pack: ANY,
    append_to_manifest: ANY,
}
EXACT = [
    lose_manifest,
    lose_pack,
    lose_chunk,
    exchange_chunks,
    change_chunk,
    exchange_packs,
    exchange_manifests,
    sign_with_another_key,
    remove_signature,
    edit_manifest,
    write_another_document,
    claim_another_version,
    forge_a_chunk,
    spoil_note,
]

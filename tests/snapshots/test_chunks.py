from __future__ import annotations

import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_gpu_predict.errors import SnapshotError
from jupyter_gpu_predict.snapshots import chunks
from jupyter_gpu_predict.snapshots.chunks import MAX_CUT_BYTES, Cutter, chunk_matches, chunk_name
from jupyter_gpu_predict.snapshots.patches import BLOCK_BYTES, apply_patch, make_patch
from jupyter_gpu_predict.snapshots.streams import Stream


def _cut(data, step=65536):
    pieces = []
    cutter = Cutter(pieces.append)
    for start in range(0, len(data), step):
        cutter.feed(data[start : start + step])
    cutter.close()
    return pieces


def _records(count, *, extra=()):
    rng = random.Random(0)
    records = [{"i": i, "name": f"record-{i}", "x": rng.random()} for i in range(count)]
    return [*extra, *records]


def _stream(value):
    stream = Stream()
    pickle.Pickler(stream, 5).dump(value)
    return stream.getvalue()


def test_pieces_are_the_stream_whatever_the_steps():
    data = _stream(_records(20_000))
    pieces = _cut(data)
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= MAX_CUT_BYTES
    assert _cut(data, 1000) == _cut(data, 300_000) == pieces


def test_an_insertion_moves_only_the_cuts_near_it():
    data = random.Random(1).randbytes(4 << 20)
    former = set(_cut(data))
    new = [
        piece for piece in _cut(data[:50_000] + b"inserted" + data[50_000:]) if piece not in former
    ]
    assert sum(map(len, new)) < 600_000


def test_streams_without_frames_load_and_shift_nothing():
    long = [b"\x95" + bytes(200_000), "x" * 300_000, bytearray(b"\x95" * 100_000), b"B" * 65_536]
    assert pickle.loads(_stream(long)) == long
    plain, shifted = _stream(_records(5000)), _stream(_records(5000, extra=["one more"]))
    # Nothing but the item itself and the boundaries of the pickler's batches of 1,000.
    assert len(shifted) - len(plain) < 30
    assert b"\x95" + (64 << 10).to_bytes(8, "little")[:2] not in plain


@pytest.mark.parametrize("place", [0, 10_000, 19_999])
def test_patch_of_an_insertion_is_small(place):
    shared = [f"shared {i}" for i in range(20_000)]
    items = [[shared[i], shared[i // 2], i * 0.1] for i in range(20_000)]
    former = _stream(items)
    items.insert(place, ["new", shared[0], 1.0])
    new = _stream(items)
    blocks, patch = make_patch(former, new)
    assert apply_patch(former, blocks, patch) == new
    assert len(patch) < len(new) // 10


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3 * BLOCK_BYTES), st.binary(max_size=3 * BLOCK_BYTES))
def test_patch_of_anything_gives_it_back(old, new):
    blocks, patch = make_patch(old, new)
    assert apply_patch(old, blocks, patch) == new


def test_a_patch_that_does_not_fit_is_refused():
    blocks, patch = make_patch(b"a" * 100, b"a" * 50 + b"b" * 50)
    with pytest.raises(ValueError, match="its blocks"):
        apply_patch(b"a" * 100, [*blocks, (1, 0)], patch)
    with pytest.raises(ValueError, match="damaged"):
        apply_patch(b"a" * 100, blocks, b"no zlib")


def test_chunk_names_say_their_hash(monkeypatch):
    data = b"some bytes"
    fast = chunk_name(data)
    monkeypatch.setattr(chunks, "optional", lambda module, name: None)
    plain = chunk_name(data)
    assert plain.startswith("s2-")
    assert chunk_matches(plain, data)
    assert not chunk_matches(plain, data + b"x")
    if fast != plain:
        with pytest.raises(SnapshotError, match="install the package blake3"):
            chunk_matches(fast, data)
    with pytest.raises(SnapshotError, match="malformed"):
        chunk_matches("../../etc", data)

"""Random tensors, views and operations beside numpy twins, with suspends and restores anywhere."""

from __future__ import annotations

import shutil
import tempfile

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from jupyter_gpu_predict.kernel.offload import Offloader, install_export_tracking

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")


class Pair:
    """A tensor and an array that must show the same numbers; `shares` holds foreign views."""

    def __init__(self, tensor, twin) -> None:
        self.tensor, self.twin, self.shares = tensor, twin, []
        self.shared = False


class SuspendAnywhere(RuleBasedStateMachine):
    pairs = Bundle("pairs")

    @initialize()
    def start(self) -> None:
        install_export_tracking()
        self.folder = tempfile.mkdtemp()
        self.offloader = Offloader("simulated", f"{self.folder}/spill")
        self.living: list[Pair] = []

    def keep(self, tensor, twin) -> Pair:
        pair = Pair(tensor, twin)
        self.living.append(pair)
        return pair

    @rule(
        target=pairs, rows=st.integers(1, 9), columns=st.integers(1, 300), seed=st.integers(0, 99)
    )
    def make(self, rows, columns, seed):
        twin = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
        tensor = torch.empty(rows, columns)
        tensor.copy_(torch.from_numpy(twin))
        return self.keep(tensor, twin)

    @rule(target=pairs, pair=pairs, start=st.integers(0, 5), step=st.integers(1, 3))
    def slice(self, pair, start, step):
        if start >= pair.twin.shape[0]:
            return multiple()
        return self.view(pair, pair.tensor[start::step], pair.twin[start::step])

    @rule(target=pairs, pair=pairs)
    def transpose(self, pair):
        return self.view(pair, pair.tensor.t(), pair.twin.T)

    def view(self, pair, tensor, twin) -> Pair:
        made = self.keep(tensor, twin)
        made.shared = pair.shared
        return made

    @rule(target=pairs, pair=pairs)
    def copy(self, pair):
        return self.keep(pair.tensor.clone(), pair.twin.copy())

    @rule(pair=pairs, value=st.integers(-5, 5))
    def add_in_place(self, pair, value):
        pair.tensor.add_(value)
        pair.twin += np.float32(value)

    @rule(pair=pairs, value=st.integers(-5, 5))
    def fill_a_row(self, pair, value):
        pair.tensor[0].fill_(value)
        pair.twin[0] = value

    @rule(pair=pairs)
    def leave_for_numpy(self, pair):
        pair.shares.append(pair.tensor.numpy())
        self.note_shared(pair)

    @rule(pair=pairs)
    def leave_for_dlpack(self, pair):
        pair.shares.append(np.from_dlpack(pair.tensor))
        self.note_shared(pair)

    def note_shared(self, pair):
        """Note it for all views: torch keeps what numpy has seen unresizable for good."""
        address = pair.tensor.untyped_storage().data_ptr()
        for other in self.living:
            if other.tensor.untyped_storage().data_ptr() == address:
                other.shared = True

    @rule(pair=pairs)
    def end_sharing(self, pair):
        pair.shares.clear()

    @rule(pair=consumes(pairs))
    def delete(self, pair):
        self.living.remove(pair)

    @rule(wanted=st.one_of(st.none(), st.integers(0, 5000)))
    def suspend(self, wanted):
        self.offloader.suspend(wanted)

    @rule()
    def restore(self):
        self.offloader.restore()

    @rule(pair=pairs)
    def restore_first(self, pair):
        self.offloader.restore(first=[{"held": (pair.tensor,)}])
        # Unless somebody else has its host copy, it is the device's again.
        if not pair.shares and not pair.shared:
            assert pair.tensor.untyped_storage().resizable()

    @rule(wanted=st.integers(0, 5000))
    def restore_some(self, wanted):
        self.offloader.restore_some(wanted)

    @rule(pair=pairs)
    def grow_and_shrink(self, pair):
        if any(p.shares or p.shared for p in self.living):
            return  # numpy would be left with memory that is gone, here as in plain torch
        storage = pair.tensor.untyped_storage()
        nbytes = storage.nbytes()
        storage.resize_(2 * nbytes)
        storage.resize_(nbytes)

    @invariant()
    def everything_shows_the_same(self):
        for pair in getattr(self, "living", ()):
            assert torch.equal(pair.tensor, torch.from_numpy(pair.twin))
            for share in pair.shares:
                assert np.array_equal(share, pair.twin)

    def teardown(self) -> None:
        self.offloader.restore()
        self.everything_shows_the_same()
        shutil.rmtree(self.folder)


SuspendAnywhere.TestCase.settings = settings(
    max_examples=10,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestSuspendAnywhere = SuspendAnywhere.TestCase

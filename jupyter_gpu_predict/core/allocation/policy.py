"""The default policy: `decide(view) -> plan`, a pure function."""

from __future__ import annotations

from ..model import ClusterView
from ..plans import Plan
from .claims import grant_claims, in_order
from .consolidate import consolidate
from .idle_saves import save_idle
from .ledger import Ledger
from .prebind import prebind
from .pressure import expire_reservations, relieve_overcommit
from .risk_moves import cordon_failing, leave_failing, snapshot_at_warning
from .spread import spread_out


def decide(view: ClusterView) -> Plan:
    """Return what to do about the cluster as `view` shows it.

    The actions are to be carried out in order; after one that fails the rest no longer holds, and
    the next decision starts from a fresh view. The same view always gives the same plan.

    - Memory is held while nobody else needs it. Under pressure slack goes first, then
      reservations, then idle kernels, the least recently used first.
    - GPUs on which hard evidence speaks of failure are cordoned and left.
    - Claims are served by priority and age, and a later one passes an earlier one only where it
      takes nothing the earlier could use. No claim waits beside memory it may have.
    - A MIG slice is leased to one kernel at a time, with all its memory.
    - With `preempt`, claims whose bursts have had less of a GPU come first, and a long running
      burst is halted for one of them where nothing less makes room.
    - What is left over is used ahead of need where forecasts make that worth its cost.
    - Where kernels crowd a GPU and another has fallen free, an idle one goes there. With
      `consolidate`, an idle kernel alone on a GPU goes where others are, if all fit there.
    - Kernels that have changed and lie idle are saved.
    """
    ledger = Ledger(view)
    ordered = in_order(ledger, view.claims)
    cordon_failing(ledger)
    expire_reservations(ledger)
    leave_failing(ledger)
    relieve_overcommit(ledger)
    grant_claims(ledger, ordered)
    prebind(ledger)
    spread_out(ledger)
    consolidate(ledger)
    snapshot_at_warning(ledger)
    save_idle(ledger)
    return Plan(view.now_s, tuple(ledger.actions))

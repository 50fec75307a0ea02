"""Snapshots that nobody had to ask for."""

from __future__ import annotations

MODEST_PAUSE_S = 0.15
"""A pause that nobody notices before a cell."""

PAUSE_SHARE = 0.01
"""A longer pause may take this share of the cell that it precedes."""


def save_before(expected_s: float, long_s: float, usual_pause_s: float) -> bool:
    """Return whether a cell is to be preceded by a snapshot.

    Parameters
    ----------
    expected_s
        How long the cell is expected to run.
    long_s
        From which duration a cell counts as long; 0 for never.
    usual_pause_s
        How long the last snapshot stopped the kernel, 0 if nothing is known of it.
    """
    if long_s <= 0 or expected_s < long_s:
        return False
    return usual_pause_s <= max(MODEST_PAUSE_S, PAUSE_SHARE * expected_s)


def automatic_name(notebook: str | None, kernel_id: str) -> str:
    """Return the name of a snapshot that nobody gave a name."""
    stem = (notebook or kernel_id[:8]).rsplit("/", 1)[-1].removesuffix(".ipynb")
    plain = "".join(c for c in stem.replace("..", "-") if c.isprintable() and c not in "/\\")
    return f"auto-{plain}"[:100]

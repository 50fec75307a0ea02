"""The digests of a cell's source; the standard library only, since kernels import it."""

from __future__ import annotations

import re
from hashlib import blake2b

DIGEST_BYTES = 16

# Read by a pattern of our own and not by `tokenize`, which splits some sources (f-strings) in
# another way from one Python to the next: kernel and server may not run the same. An unclosed
# string ends with its line, or with the source, so that no source takes more than one pass.
_PATTERN = r"""(?P<comment>\#[^\n]*)
    |(?P<string>(?i:[rbfu]{0,2})(?s:\"{3}(?:[^\\]|\\.)*?(?:\"{3}|\Z)|'{3}(?:[^\\]|\\.)*?(?:'{3}|\Z))
        |(?i:[rbfu]{0,2})(?:"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?))
    |(?P<number>\d[\w.]*(?:(?<=[eE])[+-]\d[\w]*)?|\.\d\w*)
    |(?P<word>[^\W\d]\w*)
    |(?P<space>\s+)
    |(?P<other>.)"""
_CONSTANTS = {"string": "''", "number": "0"}


def source_digest(source: str) -> str:
    """Return the BLAKE2b-128 hex digest of a cell's source.

    Line ends, trailing blanks of a line and trailing blank lines do not count: editors and
    notebook formatters change them without a change of what the cell does.
    """
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return _digest("\n".join(line.rstrip() for line in lines).rstrip("\n"))


def normalised_digest(source: str) -> str:
    """Return the hex digest of a cell's source without whitespace, comments and constants.

    Cells that differ in a number, a text or their layout have the same one, so what a cell took of
    a GPU is still known after its learning rate was changed. Indentation is whitespace: two cells
    that differ in it alone are taken for one.
    """
    kept = []
    # Compiled at the first use (`re` keeps it), which most kernels never come to.
    for found in re.finditer(_PATTERN, source, re.VERBOSE):
        kind = found.lastgroup or "other"
        if kind not in {"comment", "space"}:
            kept.append(_CONSTANTS.get(kind, found.group()))
    return _digest(" ".join(kept))


def _digest(text: str) -> str:
    # A lone surrogate is legal in a Python string and must not make a cell undigestable.
    data = text.encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=DIGEST_BYTES).hexdigest()

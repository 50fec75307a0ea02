"""The digest of a cell's source; the standard library only, since kernels import it."""

from __future__ import annotations

from hashlib import blake2b

DIGEST_BYTES = 16


def source_digest(source: str) -> str:
    """Return the BLAKE2b-128 hex digest of a cell's source.

    Line ends, trailing blanks of a line and trailing blank lines do not count: editors and
    notebook formatters change them without a change of what the cell does.
    """
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    text = "\n".join(line.rstrip() for line in lines).rstrip("\n")
    # A lone surrogate is legal in a Python string and must not make a cell undigestable.
    data = text.encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=DIGEST_BYTES).hexdigest()

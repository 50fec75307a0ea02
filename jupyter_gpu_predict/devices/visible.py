"""Which GPUs ``CUDA_VISIBLE_DEVICES`` leaves to a process."""

from __future__ import annotations

from collections.abc import Sequence


def visible_uuids(listed: Sequence[str], setting: str | None) -> list[str]:
    """Return the uuids of `listed` that `setting` allows.

    NVML lists every GPU whatever the variable says, but a scheduler that sets it for a server means
    it: GPUs of others must not be leased.

    Parameters
    ----------
    listed
        Uuids in the order of NVML, which is that of the PCI bus.
    setting
        Value of ``CUDA_VISIBLE_DEVICES``: indices or the beginnings of uuids, separated by commas.
        As CUDA reads it, everything from the first entry on that names no GPU, or one already
        named, is left out, and an empty value allows nothing. ``None`` allows all.
    """
    if setting is None:
        return list(listed)
    allowed: list[str] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.isdecimal() and entry.isascii():
            found = [listed[int(entry)]] if int(entry) < len(listed) else []
        else:
            found = [uuid for uuid in listed if entry and uuid.startswith(entry)]
        if len(found) != 1 or found[0] in allowed:
            break
        allowed.append(found[0])
    return allowed

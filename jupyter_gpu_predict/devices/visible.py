"""Which GPUs ``CUDA_VISIBLE_DEVICES`` leaves to a process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def visible_groups(
    listed: Sequence[str],
    setting: str | None,
    slices: Mapping[str, Sequence[str]] | None = None,
) -> list[list[str]]:
    """Return the uuids that each entry of `setting` allows, as far as CUDA reads it.

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
    slices
        MIG slices of the GPUs that are cut into some. An entry that names such a GPU allows all its
        slices (CUDA would take the first one only); one may be named by itself.
    """
    cut = {uuid: list(parts) for uuid, parts in (slices or {}).items()}
    parts = [part for uuid in listed for part in cut.get(uuid, ())]
    if setting is None:
        return [cut.get(uuid, [uuid]) for uuid in listed]
    groups: list[list[str]] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.isdecimal() and entry.isascii():
            found = [listed[int(entry)]] if int(entry) < len(listed) else []
        else:
            found = [uuid for uuid in (*listed, *parts) if entry and uuid.startswith(entry)]
        group = cut.get(found[0], found) if len(found) == 1 else []
        if len(found) != 1 or any(uuid in former for former in groups for uuid in group):
            break
        groups.append(group)
    return groups

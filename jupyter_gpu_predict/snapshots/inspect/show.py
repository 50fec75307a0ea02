"""`show`: the tree of a snapshot's variables, without unpickling anything."""

from __future__ import annotations

import functools
import operator
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ...errors import BadInputError, SnapshotError, SnapshotRefusedError
from ..stores import SnapshotStore
from .describe import Describer, class_names
from .graph import atom_bytes, find_shared, has_identity, weigh
from .opened import Opened

MOST_STREAM_BYTES = 256 << 20
"""Longer streams are not looked into; what the manifest says of their variables is shown."""

SHOWN_CHILDREN = 20
"""Of a container's items so many are shown."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One variable, or one thing inside a variable.

    `label` is what one writes behind the name of what holds it, such as ``".weight"`` or
    ``"[0]"``. `nbytes` is about what it takes, what is shared counted once in each variable.
    `shared_with` names the other variables that refer to the same object or memory, `same_as` the
    place where this very object was shown before, and `omitted` counts what lies in it and is not
    among `children`.
    """

    label: str
    type_name: str
    nbytes: int
    length: int | None = None
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    device: str | None = None
    text: str | None = None
    status: str = "saved"
    reason: str | None = None
    shared_with: tuple[str, ...] = ()
    same_as: str | None = None
    children: tuple[Entry, ...] = ()
    omitted: int = 0


@dataclass(frozen=True, slots=True)
class Shown:
    """What `show` tells of a snapshot."""

    snapshot_id: str
    name: str
    created_s: float
    notebook: str | None
    python: str
    libraries: dict[str, str]
    labels: dict[str, Any]
    total_bytes: int
    variables: tuple[Entry, ...]


def show(
    store: SnapshotStore,
    snapshot_id: str,
    key: bytes,
    *,
    depth: int = 3,
    only: Collection[str] | None = None,
) -> Shown:
    """Return the tree of a snapshot's variables: types, lengths, shapes, sizes and sharing.

    Nothing is unpickled or imported: the streams are read as data, after the signature and the
    hashes of their chunks held. Arrays' contents are not read at all. Any version of Python can
    show the snapshot of any other.

    Parameters
    ----------
    depth
        How many levels below a variable are shown; 0 for the variables only.
    only
        Names of the variables to be shown.

    Raises
    ------
    NotFoundError
        If there is no such snapshot.
    BadInputError
        If `only` names a variable that the snapshot does not have.
    SnapshotRefusedError
        If it is unsigned, altered, incomplete or of another format.
    """
    opened = Opened(store, snapshot_id, key)
    names = check_names(opened, only)
    shower = _Shower(opened, depth)
    entries: dict[str, Entry] = {}
    groups: dict[int, list[str]] = {}
    for name in names:
        number = opened.group_of(("var", name))
        if number is None:
            variable = opened.variables[name]
            entries[name] = _bare(variable, status=variable["status"], reason=variable["reason"])
        else:
            groups.setdefault(number, []).append(name)
    for number, members in groups.items():
        entries.update(shower.group(number, members))
    manifest = opened.manifest
    return Shown(
        snapshot_id=snapshot_id,
        name=manifest["name"],
        created_s=manifest["created_s"],
        notebook=manifest["notebook"],
        python=manifest["python"],
        libraries=dict(manifest.get("libraries", {})),
        labels=dict(manifest.get("labels") or {}),
        total_bytes=opened.total_bytes,
        variables=tuple(entries[name] for name in names),
    )


def check_names(opened: Opened, only: Collection[str] | None) -> list[str]:
    """Return the names of all variables, or those in `only`, in the order of the snapshot.

    Raises
    ------
    BadInputError
        If one of them is no variable of the snapshot.
    """
    if only is None:
        return list(opened.variables)
    unknown = [name for name in only if name not in opened.variables]
    if unknown:
        raise BadInputError(
            f"snapshot {opened.snapshot_id} has no variable {', '.join(map(repr, unknown))}; "
            "`jupyter gpu snapshots show` lists its variables"
        )
    return [name for name in opened.variables if name in only]


def session_classes(opened: Opened) -> dict[int, Any]:
    """Return what the streams of the session's classes hold, by the classes' numbers."""
    found = {}
    for number, group in enumerate(opened.manifest["groups"]):
        if group["nbytes"] > MOST_STREAM_BYTES:
            continue
        for place, key in enumerate(group["keys"]):
            if key[0] == "class":
                found[int(key[1])] = opened.values(number)[place]
    return found


def _bare(variable: Any, *, status: str = "saved", reason: str | None = None) -> Entry:
    return Entry(
        variable["name"], variable["type_name"], variable["nbytes"], status=status, reason=reason
    )


class _Shower:
    def __init__(self, opened: Opened, depth: int) -> None:
        self.opened = opened
        self.depth = depth
        self.describer = Describer(opened.buffers, class_names(session_classes(opened)))
        self.shown: dict[int, str] = {}
        self.names: list[str] = []
        self.bit = 0
        self.shared: dict[int, int] = {}
        self.shared_memory: dict[int, int] = {}
        self.weights: dict[int, int] = {}

    def group(self, number: int, members: list[str]) -> Iterator[tuple[str, Entry]]:
        """Yield the entries of the variables of one stream."""
        group = self.opened.manifest["groups"][number]
        self.names = [key[1] for key in group["keys"] if key[0] == "var"]
        try:
            if group["nbytes"] > MOST_STREAM_BYTES:
                raise SnapshotError("its stream is too long to be looked into")
            roots = {name: self.opened.value(("var", name)) for name in self.names}
        except SnapshotRefusedError:
            raise
        except SnapshotError as error:
            for name in members:
                yield name, _bare(self.opened.variables[name], reason=str(error))
            return
        self.shared, self.shared_memory = find_shared(roots) if len(roots) > 1 else ({}, {})
        together = {*self.shared.values(), *self.shared_memory.values()}
        for place, name in enumerate(self.names):
            if name not in members:
                continue
            root, variable = roots[name], self.opened.variables[name]
            self.weights = weigh(root, self.opened.buffers)
            self.bit = 1 << place
            others = functools.reduce(operator.or_, (m for m in together if m & self.bit), 0)
            entry = replace(
                self.entry((name, name), root, self.depth, 0),
                type_name=variable["type_name"],
                nbytes=variable["nbytes"],
                status=variable["status"],
                reason=variable["reason"],
                shared_with=self._spoken(others & ~self.bit),
            )
            yield name, entry
        # Ids are those of this group's values only, which are let go of.
        self.shown.clear()
        if not any(key[0] == "class" for key in group["keys"]):
            self.opened.forget(number)

    def _spoken(self, mask: int) -> tuple[str, ...]:
        return tuple(name for place, name in enumerate(self.names) if mask >> place & 1)

    def entry(self, names: tuple[str, str], value: Any, depth: int, known: int) -> Entry:
        """Return the entry of a value.

        `names` are its label and its path, `known` the variables its holder is shared with.
        """
        label, path = names
        facts = self.describer.facts(value)
        mask = self.shared.get(id(value), 0)
        number = self.describer.memory_index(value)
        if number is not None:
            mask |= self.shared_memory.get(number, 0)
        others = mask & ~self.bit
        entry = Entry(
            label,
            facts.type_name,
            self.weights.get(id(value)) or atom_bytes(value),
            facts.length,
            facts.shape,
            facts.dtype,
            facts.device,
            facts.text,
            shared_with=() if others == known else self._spoken(others),
        )
        if has_identity(value):
            before = self.shown.setdefault(id(value), path)
            if before != path:
                return replace(entry, same_as=before)
        children: list[Entry] = []
        count = 0
        for name, child in self.describer.children(value):
            count += 1
            if depth > 0 and len(children) < SHOWN_CHILDREN:
                children.append(self.entry((name, path + name), child, depth - 1, others))
            elif count > SHOWN_CHILDREN and facts.length is not None:
                count = max(count, facts.length)
                break
        return replace(entry, children=tuple(children), omitted=count - len(children))

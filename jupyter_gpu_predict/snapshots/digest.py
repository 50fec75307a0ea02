"""A digest of state: equal for equal values in different processes.

Objects are nodes of a graph: a head (type and own data) and references to children. A node outside
of any cycle is hashed from its head and its children's hashes, each object once. The nodes of a
cycle are told apart by refining their hashes from round to round until no more differ, as in the
Weisfeiler-Leman test; so neither identity nor the order of discovery enters. What is shared and
what is merely equal have the same digest.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, cast

from .digest_memory import plain_digest
from .digest_nodes import ATOMS, Node, Opaque, expand
from .report import type_name

DIGEST_BYTES = 16
_MAX_ROUNDS = 24
_LONG_BYTES = 1 << 20

_MAX_MADE = 2000
"""Deepest nesting of states made by the objects themselves; some make new ones without end."""


def digest(obj: Any) -> str:
    """Return the digest of `obj` in hex.

    What has no canonical form (a lock, an open file) counts by its type and is named:
    ``"opaque:TYPE"`` if `obj` itself is such a thing, ``"HEX+opaque:TYPE"`` if it holds one.
    Nothing is changed or computed, but ``__getstate__`` and ``__reduce__`` of the objects are
    called, as pickling does.
    """
    return _Hasher().digest(obj)


def digests(namespace: Mapping[str, Any], names: Iterable[str] | None = None) -> dict[str, str]:
    """Return the digest of each variable, or of those in `names`.

    An object in several variables is read once. The namespace itself, as ``globals()`` returns
    it, counts by what it is and not by its contents.
    """
    hasher = _Hasher(namespace)
    wanted = namespace if names is None else names
    return {name: hasher.digest(namespace[name]) for name in wanted}


class _Frame:
    """A node whose children are being visited."""

    __slots__ = (
        "children",
        "head",
        "identity",
        "low",
        "made",
        "number",
        "position",
        "references",
        "unordered",
    )

    def __init__(self, identity: int, number: int, head: bytes, node: Node, made: int) -> None:
        self.identity = identity
        self.number = self.low = number
        self.head = head
        self.unordered = node.unordered
        self.made = made
        self.children: list[Any] = []
        self.position = 0
        self.references: list[bytes | int] = []


class _Hasher:
    """Hashes objects, each once; keeps what it has seen alive, so that an id stays its own."""

    def __init__(self, namespace: Mapping[str, Any] | None = None) -> None:
        self._done: dict[int, bytes] = {}
        self._opaque: dict[int, frozenset[str]] = {}
        self._kept: list[Any] = []
        if namespace is not None:
            self._done[id(namespace)] = _hash(b"namespace")

    def digest(self, obj: Any) -> str:
        if type(obj) in ATOMS:
            return _hash_atom(obj).hex()
        node = _expand(obj)
        if isinstance(node, Opaque):
            return f"opaque:{node.type_name}"
        key = self._visit(obj)
        opaque = self._opaque.get(id(obj), frozenset())
        return key.hex() + (f"+opaque:{','.join(sorted(opaque))}" if opaque else "")

    def _visit(self, root: Any) -> bytes:
        """Hash `root` and all below it: Tarjan's search for components, without recursion."""
        if (known := self._done.get(id(root))) is not None:
            return known
        self._kept.append(root)
        open_: dict[int, _Frame] = {}
        component: list[_Frame] = []
        frames: list[_Frame] = []
        self._enter(root, open_, component, frames, 0)
        while frames:
            frame = frames[-1]
            if frame.position < len(frame.children):
                child = frame.children[frame.position]
                frame.position += 1
                identity = id(child)
                if identity not in self._done:
                    if (other := open_.get(identity)) is not None:
                        frame.low = min(frame.low, other.number)
                    elif self._enter(child, open_, component, frames, frame.made):
                        frame.references.append(identity)
                        continue
                frame.references.append(self._done.get(identity, identity))
                if identity in self._opaque:
                    self._taint(frame.identity, self._opaque[identity])
                continue
            frames.pop()
            if frame.low == frame.number:
                # Numbers are places in `component`.
                members = component[frame.number :]
                del component[frame.number :]
                self._close(members, open_)
            if frames:
                frames[-1].low = min(frames[-1].low, frame.low)
                if frame.identity in self._opaque:
                    self._taint(frames[-1].identity, self._opaque[frame.identity])
        return self._done[id(root)]

    def _enter(
        self,
        obj: Any,
        open_: dict[int, _Frame],
        component: list[_Frame],
        frames: list[_Frame],
        made: int,
    ) -> bool:
        """Hash `obj` at once if nothing is below it, or open a frame for it and return true."""
        node = _expand(obj) if made < _MAX_MADE else Opaque(type_name(obj))
        identity = id(obj)
        if isinstance(node, Opaque):
            self._taint(identity, frozenset({node.type_name}))
            node = Node(b"opaque " + node.type_name.encode())
        if not node.children:
            self._done[identity] = _hash(node.head)
            return False
        children: list[Any] = node.children
        frame = _Frame(identity, len(component), node.head, node, made + node.made)
        if node.unordered:
            frame.references += [_hash_atom(c) for c in children if type(c) in ATOMS]
        elif not ATOMS.isdisjoint(map(type, children)):
            # All atoms at once, with a mark for each other child.
            packed = marshal.dumps([c if type(c) in ATOMS else ... for c in children], 2)
            frame.head = len(node.head).to_bytes(8, "little") + node.head + packed
        frame.children = [c for c in children if type(c) not in ATOMS]
        if not frame.children:
            self._done[identity] = _combine(frame, cast("list[bytes]", frame.references))
            return False
        self._kept.append(frame.children)
        open_[identity] = frame
        component.append(frame)
        frames.append(frame)
        return True

    def _taint(self, identity: int, types: frozenset[str]) -> None:
        self._opaque[identity] = self._opaque.get(identity, frozenset()) | types

    def _close(self, members: list[_Frame], open_: dict[int, _Frame]) -> None:
        """Hash the nodes of one strongly connected component, all of whose children are known."""
        for frame in members:
            del open_[frame.identity]
        if len(members) == 1 and members[0].identity not in members[0].references:
            frame = members[0]
            references = [r if isinstance(r, bytes) else self._done[r] for r in frame.references]
            self._done[frame.identity] = _combine(frame, references)
            return
        inside = {frame.identity for frame in members}
        for frame in members:
            frame.references = [
                r if isinstance(r, bytes) or r in inside else self._done[r]
                for r in frame.references
            ]
        colours = {frame.identity: frame.head for frame in members}
        distinct = 0
        for _ in range(_MAX_ROUNDS):
            colours = {
                frame.identity: _combine(
                    frame,
                    [r if isinstance(r, bytes) else colours[r] for r in frame.references],
                )
                for frame in members
            }
            count = len(set(colours.values()))
            if count == distinct:
                break
            distinct = count
        whole = b"".join(sorted(set(colours.values())))
        types = frozenset().union(*(self._opaque.get(i, frozenset()) for i in inside))
        for identity, colour in colours.items():
            self._done[identity] = _hash(b"cycle", colour + whole)
            if types:
                self._opaque[identity] = types


def _expand(obj: Any) -> Node | Opaque:
    try:
        return expand(obj)
    except Exception:
        return Opaque(type_name(obj))


def _hash_atom(value: Any) -> bytes:
    if type(value) is bytes and len(value) > _LONG_BYTES:
        return _hash(b"bytes", plain_digest(value))
    # Version 2 of marshal writes floats in binary and neither references nor interning.
    return _hash(b"atom", marshal.dumps(value, 2))


def _combine(frame: _Frame, references: list[bytes]) -> bytes:
    if frame.unordered:
        references = sorted(references)
    return _hash(frame.head, b"".join(references))


def _hash(head: bytes, data: bytes = b"") -> bytes:
    hasher = blake2b(len(head).to_bytes(8, "little") + head, digest_size=DIGEST_BYTES)
    hasher.update(data)
    return hasher.digest()

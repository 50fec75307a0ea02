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
from typing import Any

from .digest_nodes import ATOMS, Node, Opaque, expand
from .report import type_name

DIGEST_BYTES = 16
_MAX_ROUNDS = 24


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
    __slots__ = ("identity", "low", "node", "number", "position", "references")

    def __init__(self, identity: int, number: int, node: Node) -> None:
        self.identity = identity
        self.number = self.low = number
        self.node = node
        self.position = 0
        self.references: list[bytes | int] = []


class _Hasher:
    def __init__(self, namespace: Mapping[str, Any] | None = None) -> None:
        self._done: dict[int, bytes] = {}
        if namespace is not None:
            self._done[id(namespace)] = _hash(b"namespace", b"")
        self._opaque: dict[int, frozenset[str]] = {}
        # Ids stay valid only while their objects live, temporary states included.
        self._kept: list[Any] = []

    def digest(self, obj: Any) -> str:
        node = None if type(obj) in ATOMS else _expand(obj)
        if isinstance(node, Opaque):
            return f"opaque:{node.type_name}"
        key = self._visit(obj)
        opaque = self._opaque.get(id(obj), frozenset())
        return key.hex() + (f"+opaque:{','.join(sorted(opaque))}" if opaque else "")

    def _visit(self, root: Any) -> bytes:
        if type(root) in ATOMS:
            return hash_atom(root)
        if (known := self._done.get(id(root))) is not None:
            return known
        self._kept.append(root)
        open_: dict[int, _Frame] = {}
        component: list[_Frame] = []
        frames = [self._enter(root, open_, component)]
        while frames:
            frame = frames[-1]
            children = frame.node.children
            while frame.position < len(children):
                child = children[frame.position]
                frame.position += 1
                if type(child) in ATOMS:
                    frame.references.append(hash_atom(child))
                    continue
                identity = id(child)
                known = self._done.get(identity)
                if known is not None:
                    frame.references.append(known)
                    if identity in self._opaque:
                        self._taint(frame.identity, self._opaque[identity])
                    continue
                frame.references.append(identity)
                if (other := open_.get(identity)) is not None:
                    frame.low = min(frame.low, other.number)
                    continue
                frames.append(self._enter(child, open_, component))
                break
            else:
                frames.pop()
                if frames:
                    frames[-1].low = min(frames[-1].low, frame.low)
                if frame.low == frame.number:
                    at = component.index(frame) if component[-1] is not frame else -1
                    members = component[at:]
                    del component[at:]
                    self._close(members, open_)
                if frames and frame.identity in self._opaque:
                    self._taint(frames[-1].identity, self._opaque[frame.identity])
        return self._done[id(root)]

    def _enter(self, obj: Any, open_: dict[int, _Frame], component: list[_Frame]) -> _Frame:
        node = _expand(obj)
        if isinstance(node, Opaque):
            self._taint(id(obj), frozenset({node.type_name}))
            node = Node(b"opaque " + node.type_name.encode())
        self._kept.append(node.children)
        frame = _Frame(id(obj), len(open_), node)
        open_[frame.identity] = frame
        component.append(frame)
        return frame

    def _taint(self, identity: int, types: frozenset[str]) -> None:
        self._opaque[identity] = self._opaque.get(identity, frozenset()) | types

    def _close(self, members: list[_Frame], open_: dict[int, _Frame]) -> None:
        """Hash the nodes of one strongly connected component, all of whose children are known."""
        for frame in members:
            del open_[frame.identity]
        if len(members) == 1 and members[0].identity not in members[0].references:
            frame = members[0]
            references = [r if isinstance(r, bytes) else self._done[r] for r in frame.references]
            self._done[frame.identity] = _combine(frame.node, references)
            return
        inside = {frame.identity for frame in members}
        for frame in members:
            frame.references = [
                r if isinstance(r, bytes) or r in inside else self._done[r]
                for r in frame.references
            ]
        colours = {frame.identity: frame.node.head for frame in members}
        distinct = 0
        for _ in range(_MAX_ROUNDS):
            colours = {
                frame.identity: _combine(
                    frame.node,
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


def hash_atom(value: Any) -> bytes:
    """Return the hash of a number, text, bytes or ``None``."""
    # Version 2 writes floats in binary and neither references nor interning.
    return _hash(b"atom", marshal.dumps(value, 2))


def _combine(node: Node, references: list[bytes]) -> bytes:
    if node.unordered:
        references = sorted(references)
    return _hash(node.head, b"".join(references))


def _hash(head: bytes, data: bytes) -> bytes:
    hasher = blake2b(len(head).to_bytes(8, "little"), digest_size=DIGEST_BYTES)
    hasher.update(head)
    hasher.update(data)
    return hasher.digest()

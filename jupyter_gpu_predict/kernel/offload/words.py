"""What the source of a cell names in a namespace."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

_WORD = re.compile(r"[^\W\d]\w*")


def words(source: str) -> set[str]:
    """Return every word of a source that can be a name; also those in magics and strings."""
    return set(_WORD.findall(source))


def values_named(source: str, namespace: Mapping[str, Any]) -> list[Any]:
    """Return the values of `namespace` that running `source` is likely to touch.

    Where a variable is named only as one item or attribute of it (``data[3]``, ``model.head``),
    that part is returned instead of the whole. No code of the user's runs for it: only plain
    lists, tuples and dictionaries are looked into, and what an instance holds under its own name.
    """
    named = words(source) & namespace.keys()
    parts = _parts(source)
    values = []
    for name in sorted(named):
        value = namespace[name]
        if name in parts:
            values += [_part(value, path) for path in parts[name]]
        else:
            values.append(value)
    return values


Path = tuple[tuple[str, Any], ...]


def _parts(source: str) -> dict[str, set[Path]]:
    """Return the constant paths by which each name is used, for names used in no other way."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return {}  # a magic, or no Python at all: whatever is named counts as a whole
    found: dict[str, set[Path]] = {}
    uses: dict[str, int] = {}
    inner: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Subscript)) and id(node) not in inner:
            path, root = _path(node, inner)
            if isinstance(root, ast.Name) and path:
                found.setdefault(root.id, set()).add(path)
                uses[root.id] = uses.get(root.id, 0) - 1
        if isinstance(node, ast.Name):
            uses[node.id] = uses.get(node.id, 0) + 1
    # A word in a string or a comment is no node; it is not a use either.
    return {name: paths for name, paths in found.items() if not uses[name]}


def _path(node: ast.AST, inner: set[int]) -> tuple[Path, ast.AST]:
    """Return the part of a chain that begins at its name and is constant, and what it begins at."""
    steps: list[tuple[str, Any] | None] = []
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        inner.add(id(node))
        if isinstance(node, ast.Attribute):
            steps.append(("attribute", node.attr))
        else:
            steps.append(_index(node.slice))
        node = node.value
    path: list[tuple[str, Any]] = []
    for step in reversed(steps):
        if step is None:
            break
        path.append(step)
    return tuple(path), node


def _index(node: ast.AST) -> tuple[str, Any] | None:
    try:
        index = ast.literal_eval(node)
    except (ValueError, TypeError):
        return None
    return ("item", index) if type(index) in (int, str) else None


def _part(value: Any, path: Path) -> Any:
    for kind, key in path:
        inside = _item(value, key) if kind == "item" else _attribute(value, key)
        if inside is _NOTHING:
            break
        value = inside
    return value


_NOTHING = object()


def _item(value: Any, key: Any) -> Any:
    if type(value) is dict:
        return value.get(key, _NOTHING)
    if type(value) in (list, tuple) and type(key) is int and -len(value) <= key < len(value):
        return value[key]
    return _NOTHING


def _attribute(value: Any, name: str) -> Any:
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return _NOTHING
    if type(own) is not dict:
        return _NOTHING
    if name in own:
        return own[name]
    # torch's modules keep what they are made of one level below.
    for group in ("_modules", "_parameters", "_buffers"):
        inside = own.get(group)
        if type(inside) is dict and name in inside:
            return inside[name]
    return _NOTHING

"""Which names a piece of syntax loads, binds, and hands over."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterable

_COMPREHENSION = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
REFLECTIVE = frozenset(
    {"exec", "eval", "compile", "globals", "locals", "vars", "__import__", "breakpoint",
     "get_ipython"}
)  # fmt: skip
"""Through these a cell may do anything to any variable."""

IPYTHON_NAMES = re.compile(r"_{1,3}|_i{1,3}|_\d+|_i\d+|_ih|_oh|_dh|In|Out")
"""IPython's own; what they hold depends on the history."""

BUILTINS = frozenset(vars(builtins))
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
WRITING = frozenset({"out", "inplace", "key", "default"})
"""Keywords through which a function that otherwise only reads changes, or runs, something else."""


def surely_bound(node: ast.stmt) -> set[str]:
    """Return the names that are bound once `node` has run without an error."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {imported(alias) for alias in node.names}
    if isinstance(node, ast.Assign):
        return {name for target in node.targets for name in target_names(target)}
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        return set(target_names(node.target))
    if isinstance(node, (ast.With, ast.AsyncWith)):
        return {
            name
            for item in node.items
            if item.optional_vars is not None
            for name in target_names(item.optional_vars)
        }
    if isinstance(node, ast.If):
        first = {name for child in node.body for name in surely_bound(child)}
        return first & {name for child in node.orelse for name in surely_bound(child)}
    return set()


def target_names(target: ast.AST) -> Iterable[str]:
    """Return the names that an assignment to `target` binds."""
    return (n.id for n in ast.walk(target) if isinstance(n, ast.Name) and is_store(n))


def is_store(node: ast.Name) -> bool:
    """Whether the name is bound or deleted here."""
    return isinstance(node.ctx, (ast.Store, ast.Del))


def imported(alias: ast.alias) -> str:
    """Return the name that an import binds."""
    return alias.asname or alias.name.partition(".")[0]


def params_of(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> tuple[str, ...]:
    """Return the names of a function's parameters."""
    a = node.args
    found = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    return (*found, *(p.arg for p in (a.vararg, a.kwarg) if p is not None))


def locals_of(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> set[str]:
    """Return the names of a function's own variables."""
    found = set(params_of(node))
    outside: set[str] = set()
    body = node.body if isinstance(node.body, list) else []
    for statement in body:
        found |= bound_in(statement)
        outside |= {
            name
            for inner in ast.walk(statement)
            if isinstance(inner, ast.Global)
            for name in inner.names
        }
    return found - outside


def bound_in(node: ast.AST) -> set[str]:
    """Return the names that `node` binds in its own scope."""
    found: set[str] = set()
    waiting: list[ast.AST] = [node]
    while waiting:
        current = waiting.pop()
        if isinstance(current, ast.Name) and is_store(current):
            found.add(current.id)
        elif isinstance(current, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(current.name)
            waiting.extend(current.decorator_list)
            continue
        elif isinstance(current, ast.Lambda):
            continue
        elif isinstance(current, _COMPREHENSION):
            found |= {n.target.id for n in ast.walk(current) if isinstance(n, ast.NamedExpr)}
            continue
        elif isinstance(current, (ast.Import, ast.ImportFrom)):
            found |= {imported(alias) for alias in current.names}
        elif isinstance(current, ast.ExceptHandler) and current.name:
            found.add(current.name)
        found |= captured(current)
        waiting.extend(ast.iter_child_nodes(current))
    return found


def captured(node: ast.AST) -> set[str]:
    """Return the names that a pattern binds; all of them for a whole ``match``."""
    if isinstance(node, ast.Match):
        return {n for case in node.cases for p in ast.walk(case.pattern) for n in captured(p)}
    if isinstance(node, (ast.MatchAs, ast.MatchStar)):
        return {node.name} if node.name else set()
    if isinstance(node, ast.MatchMapping):
        return {node.rest} if node.rest else set()
    return set()


def loaded_in(node: ast.AST) -> set[str]:
    """Return the names that `node` and all below it load."""
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and not is_store(n)}


def roots(node: ast.expr) -> list[str]:
    """Return the names whose objects a store to `node` may change."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Starred)):
        node = node.value
    return [node.id] if isinstance(node, ast.Name) else sorted(loaded_in(node))


def passed(node: ast.expr | None) -> set[str]:
    """Return the names whose objects the value of `node` may be or hold."""
    if node is None or isinstance(node, ast.Constant):
        return set()
    found = loaded_in(node)
    for call in ast.walk(node):
        # What is called is not what comes out, unless it is a method.
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            inside = {n for a in (*call.args, *call.keywords) for n in loaded_in(a)}
            if call.func.id not in inside and _count(node, call.func.id) == 1:
                found.discard(call.func.id)
    return found


def _count(node: ast.AST, name: str) -> int:
    return sum(isinstance(n, ast.Name) and n.id == name for n in ast.walk(node))


def dotted(node: ast.expr) -> tuple[str, str]:
    """Return root and path of a dotted name, or empty ones for another expression."""
    path: list[str] = []
    while isinstance(node, ast.Attribute):
        path.append(node.attr)
        node = node.value
    return (node.id, ".".join(reversed(path))) if isinstance(node, ast.Name) else ("", "")

# ruff: noqa: D102 - the methods are named by the syntax they visit
"""What one stretch of code does to the names in it, statement by statement."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from .names import (
    BUILTINS,
    FUNCTION,
    IPYTHON_NAMES,
    REFLECTIVE,
    WRITING,
    captured,
    dotted,
    imported,
    is_store,
    passed,
    roots,
    surely_bound,
    target_names,
)
from .uses import RESULT, Call, Uses


class Reader(ast.NodeVisitor):
    """Reads one scope: the top of a cell, or a function with all that is nested in it.

    Comprehensions and nested functions count as part of their surroundings, their variables as
    locals; that a comprehension's variable may hide a global only adds names.
    """

    def __init__(
        self,
        local: set[str],
        later: dict[str, list[Uses]] | None,
        params: tuple[str, ...] = (),
    ) -> None:
        self.local = local
        self.later = later
        self.uses = Uses(params=params)
        self.bound: set[str] = set()
        self._own: list[set[str]] = []
        self._fresh = ""

    # ---------------------------------------------------------------- names

    def finish(self) -> Uses:
        """Return what was found."""
        self.uses.local = frozenset(self.local)
        return self.uses

    def _join(self, names: Iterable[str]) -> None:
        """Note that these may be, or hold, the same objects."""
        names = list(names)
        # Also one name twice: `x = [x]` holds what `x` was before.
        if len(names) > 1:
            self.uses.joins.add(frozenset(names))

    def _is_local(self, name: str) -> bool:
        return name in self.local or any(name in scope for scope in self._own)

    def _load(self, name: str) -> None:
        if self._is_local(name):
            return
        if name in REFLECTIVE:
            self._fault(f"it uses {name}()", anything=True)
        if IPYTHON_NAMES.fullmatch(name):
            self._fault(f"it uses IPython's {name}", anything=True)
        self.uses.loads.add(name)
        if name not in self.bound:
            self.uses.reads.add(name)

    def _bind(self, name: str) -> None:
        if not self._is_local(name) and not IPYTHON_NAMES.fullmatch(name):
            self.uses.writes.add(name)

    def _fault(self, why: str, *, anything: bool = False) -> None:
        self.uses.fault = self.uses.fault or why
        self.uses.anything |= anything

    def generic_visit(self, node: ast.AST) -> None:
        """Visit what is below; a name bound in a block is bound for the rest of that block."""
        for _, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                self._block(value)
            elif isinstance(value, list):
                for item in value:
                    if isinstance(item, ast.AST):
                        self.visit(item)
            elif isinstance(value, ast.AST):
                self.visit(value)

    def _block(self, statements: list[ast.stmt], given: Iterable[str] = ()) -> None:
        before = set(self.bound)
        self.bound.update(given)
        for statement in statements:
            self.visit(statement)
            self.bound |= surely_bound(statement)
        self.bound = before

    def visit_Name(self, node: ast.Name) -> None:
        if is_store(node):
            self._bind(node.id)
            if isinstance(node.ctx, ast.Del):
                self._load(node.id)
        else:
            self._load(node.id)

    # ---------------------------------------------------------------- binding

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._assign(target, node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._assign(node.target, node.value)
        self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self._assign(node.target, node.value)
        # In a comprehension it binds a name of the scope around it.
        own, self._own = self._own, []
        self._bind(node.target.id)
        self._own = own
        self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._assign(node.target, node.value)
        if isinstance(node.target, ast.Name):
            self._load(node.target.id)
            self._store(node.target.id)
        self.generic_visit(node)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            pairs: list[tuple[ast.expr, ast.expr]] = [(e, value) for e in target.elts]
            if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts):
                pairs = list(zip(target.elts, value.elts, strict=True))
            else:
                self._iterate(value)
            for element, part in pairs:
                self._assign(element, part)
            return
        if isinstance(target, ast.Starred):
            self._assign(target.value, value)
            return
        owners = roots(target)
        if not isinstance(target, ast.Name):
            shallow = isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name)
            for name in owners:
                # What a constructor puts into its new object changes nothing else.
                if not (shallow and name == self._fresh):
                    self._store(name)
        self._join([*owners, *passed(value)])

    def _store(self, name: str) -> None:
        self.uses.stores.add(name)

    def _iterate(self, value: ast.expr) -> None:
        self.uses.iterates.update(passed(value))

    def visit_Delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            if not isinstance(target, ast.Name):
                for name in roots(target):
                    self._store(name)
        self.generic_visit(node)

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        if isinstance(node, ast.AsyncFor):
            self._fault("it awaits")
        self._iterate(node.iter)
        self._assign(node.target, node.iter)
        self.visit(node.iter)
        self.visit(node.target)
        self._block(node.body, target_names(node.target))
        self._block(node.orelse)

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        if isinstance(node, ast.AsyncWith):
            self._fault("it awaits")
        for item in node.items:
            names = passed(item.context_expr)
            if item.optional_vars is not None:
                self._assign(item.optional_vars, item.context_expr)
            self.uses.calls.add(Call("", "__enter__", frozenset(names), False))
            self.visit(item)
        self._block(node.body, surely_bound(node))

    visit_AsyncFor = visit_For  # noqa: N815
    visit_AsyncWith = visit_With  # noqa: N815

    def visit_Await(self, node: ast.Await) -> None:
        self._fault("it awaits")
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._bind(imported(alias))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name == "*":
                self._fault(f"it imports * from {node.module or '.'}")
            elif node.module != "__future__":
                self._bind(imported(alias))

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self._bind(node.name)
        self.generic_visit(node)

    def visit_Global(self, node: ast.Global) -> None:
        for scope in (self.local, *self._own):
            scope.difference_update(node.names)

    def visit_Match(self, node: ast.Match) -> None:
        self.uses.calls.add(Call("", "__match__", frozenset(passed(node.subject)), False))
        self._join([*captured(node), *passed(node.subject)])
        for name in captured(node):
            self._bind(name)
        self.generic_visit(node)

    # ---------------------------------------------------------------- changing

    def visit_Call(self, node: ast.Call) -> None:
        parts = [a.value if isinstance(a, ast.Starred) else a for a in node.args]
        names = {n for p in (*parts, *(k.value for k in node.keywords)) for n in passed(p)}
        root, path = dotted(node.func)
        if not root:
            names |= passed(node.func)
            path = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        plain = not any(k.arg is None or k.arg in WRITING for k in node.keywords)
        runs = any(isinstance(p, FUNCTION) for p in parts)
        self.uses.calls.add(
            Call(root, path, frozenset(names), plain and not runs, bool(node.args or node.keywords))
        )
        if root and path:
            names.add(root)
        if not (root in BUILTINS and not path):
            self._join(names)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        # A defaultdict, or a loader of rows, changes when an item is looked up.
        self.uses.iterates.update(roots(node.value))
        self.generic_visit(node)

    def visit_Starred(self, node: ast.Starred) -> None:
        self._iterate(node.value)
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        self._join([RESULT, *passed(node.value)])
        self.generic_visit(node)

    def visit_Yield(self, node: ast.Yield) -> None:
        self._join([RESULT, *passed(node.value)])
        self.generic_visit(node)

    def visit_YieldFrom(self, node: ast.YieldFrom) -> None:
        self._join([RESULT, *passed(node.value)])
        self._iterate(node.value)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for operation, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(operation, (ast.In, ast.NotIn)):
                self._iterate(right)
        self.generic_visit(node)

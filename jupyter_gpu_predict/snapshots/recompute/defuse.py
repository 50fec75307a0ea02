# ruff: noqa: N802 - the methods are named by the syntax they visit
"""What a cell's source may read, bind and change of the namespace, found without running it.

The answer errs on the side of too much: a name that is only perhaps changed counts as changed. What
cannot be known from the source (a magic, ``exec``, a star import) is a `fault`, and such a cell is
never run again.
"""

from __future__ import annotations

import ast
from functools import lru_cache

from .magics import python_of, without_needs
from .names import (
    bound_in,
    loaded_in,
    locals_of,
    params_of,
    passed,
    surely_bound,
    target_names,
)
from .reading import Reader
from .uses import Analysis, Call, Uses


@lru_cache(maxsize=1024)
def analyse(source: str) -> Analysis:
    """Return what the cell `source` may do to the namespace; never raises."""
    try:
        return _analyse(ast.parse(without_needs(source)), "")
    except (SyntaxError, ValueError):
        return _with_magics(source)
    except (RecursionError, MemoryError):
        return _unknown("it is nested too deeply")


def _with_magics(source: str) -> Analysis:
    why = "it has a magic, a shell command or a syntax error"
    try:
        python = python_of(source)
        return _unknown(why) if python is None else _analyse(ast.parse(python), why)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _unknown(why)


def _unknown(why: str) -> Analysis:
    return Analysis(Uses(fault=why, anything=True), {})


def _analyse(tree: ast.Module, fault: str) -> Analysis:
    later: dict[str, list[Uses]] = {}
    top = _Unit(set(), later)
    top.uses.fault = fault
    for statement in tree.body:
        top.visit(statement)
        top.bound |= surely_bound(statement)
    return Analysis(top.finish(), later)


class _Unit(Reader):
    """Reads one scope: the top of a cell, or a function with all that is nested in it."""

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._bind(node.name)
        self._outside_of(node)
        if self.later is None:
            self._nested(node)
            return
        body = self._body(node, "")
        self.later.setdefault(node.name, []).append(body)
        if node.decorator_list:
            self._decorated(node.decorator_list, body)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._outside_of(node)
        self._nested(node)
        if self.later is not None:
            unit = _Unit(locals_of(node), None, params_of(node))
            unit.visit(ast.Return(node.body))
            self.later.setdefault("<lambda>", []).append(unit.finish())

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._bind(node.name)
        for part in (*node.decorator_list, *node.bases, *node.keywords):
            self.visit(part)
        # The body of a class runs at once; names that it binds are the class's.
        own = {n for s in node.body for n in bound_in(s)}
        self._own.append(own)
        for statement in node.body:
            if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self._method(node, statement)
            else:
                self.visit(statement)
                # A class body that reads a name before it binds it gets the global.
                for name in loaded_in(statement) & own:
                    self.uses.reads.add(name)
        self._own.pop()

    def _method(self, owner: ast.ClassDef, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._outside_of(node)
        if self.later is None:
            self._nested(node)
            return
        first = node.args.args[0].arg if node.args.args else ""
        makes = node.name in ("__init__", "__post_init__")
        body = self._body(node, first if makes else "")
        self.later.setdefault(f"{owner.name}.{node.name}", []).append(body)
        self.later.setdefault(owner.name, [])
        if owner.decorator_list or owner.bases or node.decorator_list:
            self.uses.reads |= body.reads

    def _body(self, node: ast.FunctionDef | ast.AsyncFunctionDef, fresh: str) -> Uses:
        body = _function(node, fresh)
        body.given = frozenset(self.bound)
        return body

    def _decorated(self, decorators: list[ast.expr], body: Uses) -> None:
        """Expect that a decorator runs the function, with anything."""
        self.uses.reads |= body.reads
        self.uses.writes |= body.writes
        for decorator in decorators:
            self.uses.calls.add(Call("", "", frozenset(passed(decorator)), False))

    def _outside_of(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        """Visit what of a function is computed where it is defined."""
        if not isinstance(node, ast.Lambda):
            for decorator in node.decorator_list:
                self.visit(decorator)
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)

    def _nested(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        """Count a function that may run any time as if it ran here."""
        self._own.append(locals_of(node))
        bound, self.bound = self.bound, set(self.bound)
        for statement in node.body if isinstance(node.body, list) else [node.body]:
            self.visit(statement)
        self.bound = bound
        self._own.pop()

    def _comprehension(self, node: ast.expr, generators: list[ast.comprehension]) -> None:
        targets = {n for g in generators for n in target_names(g.target)}
        for generator in generators:
            if generator.is_async:
                self._fault("it awaits")
            self._iterate(generator.iter)
            self._assign(generator.target, generator.iter)
        self._own.append(targets)
        self.generic_visit(node)
        self._own.pop()
        # The first iterable is computed outside, where a target may hide a name of its own.
        self.visit(generators[0].iter)

    def visit_ListComp(self, node: ast.ListComp) -> None:
        self._comprehension(node, node.generators)

    def visit_SetComp(self, node: ast.SetComp) -> None:
        self._comprehension(node, node.generators)

    def visit_DictComp(self, node: ast.DictComp) -> None:
        self._comprehension(node, node.generators)

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> None:
        self._comprehension(node, node.generators)
        if self.later is not None:
            # Its first iterable is computed here, all else only when it is asked for an item.
            first, *others = node.generators
            now = ast.comprehension(first.target, ast.Tuple([], ast.Load()), first.ifs, 0)
            unit = _Unit(set(), None)
            unit.visit(ast.Return(ast.ListComp(node.elt, [now, *others])))
            self.later.setdefault("<genexpr>", []).append(unit.finish())


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, fresh: str) -> Uses:
    """Return what a function's body does when it is called."""
    unit = _Unit(locals_of(node), None, params_of(node))
    unit._fresh = fresh
    for statement in node.body:
        unit.visit(statement)
    return unit.finish()

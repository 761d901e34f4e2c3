"""The changes: each is a copy of a module's syntax tree with one place altered."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

COMPARE: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
Change = Callable[[ast.AST], None]


@dataclass(frozen=True)
class Mutant:
    """One altered module."""

    line: int
    what: str
    tree: ast.Module


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a module. Docstrings, annotations and texts of errors stay as they are."""
    tree = ast.parse(source)
    untouched = set(_untouched(tree))
    for number, node in enumerate(ast.walk(tree)):
        if node in untouched:
            continue
        for what, change in _changes(node):
            altered = copy.deepcopy(tree)
            change(list(ast.walk(altered))[number])
            shown = f"{ast.unparse(node)[:60]}  ->  {what}"
            yield Mutant(getattr(node, "lineno", 0), shown, ast.fix_missing_locations(altered))


def _untouched(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        left: list[ast.AST | None] = []
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            # Docstrings, also those that stand below an attribute.
            left += [s for s in node.body if isinstance(s, ast.Expr) and _is_text(s.value)]
        if isinstance(node, ast.FunctionDef):
            left += [node.returns, *node.decorator_list]
        elif isinstance(node, ast.arg | ast.AnnAssign):
            left.append(node.annotation)
            if isinstance(node, ast.AnnAssign) and "TypeAlias" in ast.unparse(node.annotation):
                left.append(node.value)
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            left += [each for each in node.exc.args if not isinstance(each, ast.Attribute)]
        elif isinstance(node, ast.JoinedStr | ast.If) and _is_main(node):
            left.append(node)
        for each in left:
            if each is not None:
                yield from ast.walk(each)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_main(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)


def _changes(node: ast.AST) -> Iterator[tuple[str, Change]]:
    if isinstance(node, ast.Compare):
        yield from _comparisons(node)
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        other = ARITHMETIC[type(node.op)]
        yield other.__name__, lambda n: setattr(n, "op", other())
    elif isinstance(node, ast.BoolOp):
        swapped = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield swapped.__name__, lambda n: setattr(n, "op", swapped())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield "without its sign", lambda n: _become(n, getattr(n, "operand"))  # noqa: B009
    elif isinstance(node, ast.Constant):
        yield from _constants(node)
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        if not _is_main(node):
            yield "never", lambda n: setattr(n, "test", ast.Constant(False))
            if not isinstance(node, ast.While):
                yield "always", lambda n: setattr(n, "test", ast.Constant(True))
    elif isinstance(node, ast.Return) and node.value is not None:
        if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield "None", lambda n: setattr(n, "value", ast.Constant(None))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "not done", lambda n: setattr(n, "value", ast.Constant(None))
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        yield from _members(node)


def _comparisons(node: ast.Compare) -> Iterator[tuple[str, Change]]:
    for at, op in enumerate(node.ops):
        for other in COMPARE[type(op)]:

            def change(n: ast.AST, at: int = at, other: type[ast.cmpop] = other) -> None:
                assert isinstance(n, ast.Compare)
                n.ops[at] = other()

            yield other.__name__, change


def _constants(node: ast.Constant) -> Iterator[tuple[str, Change]]:
    value = node.value
    changed: list[object] = []
    if isinstance(value, bool):
        changed = [not value]
    elif isinstance(value, int):
        changed = [value + 1, value - 1]
    elif isinstance(value, str | bytes) and value:
        changed = [value * 2]
    for other in changed:
        yield repr(other), lambda n, other=other: setattr(n, "value", other)  # type: ignore[misc]


STATES = {
    "ObjectState": ("CLOSE", "OPEN", "REOPENING", "DROPPING"),
    "RequestState": ("NEW", "DELIVERED", "DONE"),
    "ObjectEvent": ("COPEN", "FD_CLOSED", "READ_MET", "DROP"),
    "RequestEvent": ("DELIVER", "RESTORE", "COMPLETE", "FAIL"),
    "Opcode": ("OPEN", "CLOSE", "READ"),
}
"""What stands in the tables: each entry becomes the next of its kind."""


def _members(node: ast.Attribute) -> Iterator[tuple[str, Change]]:
    assert isinstance(node.value, ast.Name)
    names = STATES.get(node.value.id, ())
    if node.attr in names:
        other = names[(names.index(node.attr) + 1) % len(names)]
        yield other, lambda n: setattr(n, "attr", other)


def _become(node: ast.AST, other: ast.AST) -> None:
    """`node` in the place where it stands turns into `other`."""
    node.__class__ = other.__class__
    node.__dict__.clear()
    node.__dict__.update(other.__dict__)

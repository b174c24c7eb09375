"""Small faults that can be put into a source file, one at a time, found in its syntax tree.

Not touched, since no test should know them: annotations, decorators, texts, what is raised (the
raise itself can go), printed or shown as progress.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_NAMES = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "argmin": "argmax",
    "argmax": "argmin",
    "minimum": "maximum",
    "maximum": "minimum",
    "floor": "ceil",
    "zeros": "ones",
    "ones": "zeros",
    "sum": "mean",
    "mean": "sum",
    "sorted": "list",
    "first": "last",
    "append": "appendleft",
    "popleft": "pop",
}
_SHOWN = {"print", "progress", "say", "update"}  # calls that only show something


@dataclass(frozen=True)
class Mutant:
    """One fault: what stood there, what stands there now, and the whole new text."""

    line: int
    kind: str
    before: str
    after: str
    source: str


def mutants(source: str) -> list[Mutant]:
    """All faults of a source file, in the order of its lines."""
    found, lines = [], source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    data = source.encode()

    def place(line: int, column: int) -> int:
        return starts[line - 1] + column

    for node, kind, after in _faults(ast.parse(source)):
        begin, end = (
            place(node.lineno, node.col_offset),
            place(node.end_lineno, node.end_col_offset),
        )
        text = (data[:begin] + after.encode() + data[end:]).decode()
        before = data[begin:end].decode()
        if " ".join(before.split()) != after:
            found.append(Mutant(node.lineno, kind, before, after, text))
    return sorted(found, key=lambda one: one.line)


def _faults(tree: ast.AST) -> Iterator[tuple[ast.AST, str, str]]:
    """(node, kind of the fault, what stands in its place)."""
    for node in _touched(tree):
        if isinstance(node, (ast.If, ast.While)) and not isinstance(node.test, ast.Compare):
            if _name(node.test) == "TYPE_CHECKING":
                continue
            yield node.test, "condition negated", f"(not ({ast.unparse(node.test)}))"
        for kind, changed in _changed(node):
            text = changed if isinstance(changed, str) else ast.unparse(changed)
            # An operand of another expression must not fall apart.
            yield node, kind, f"({text})" if isinstance(node, ast.expr) else text


def _touched(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that may be changed."""
    if isinstance(node, (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)):
        if isinstance(node, ast.Raise):
            yield node
        return
    if isinstance(node, ast.Call) and _name(node.func) in _SHOWN:
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # a docstring
    if isinstance(node, ast.keyword) and node.arg == "strict":
        return  # of zip: what is never otherwise
    yield node
    skipped = {"annotation", "returns", "decorator_list", "type_comment"}
    for field, value in ast.iter_fields(node):
        if field in skipped or (field == "slice" and _name(getattr(node, "value", None)) in _TYPES):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _touched(child)


_TYPES = {"NDArray", "dict", "list", "tuple", "set", "type", "Callable"}


def _name(node: ast.AST | None) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _changed(node: ast.AST) -> Iterator[tuple[str, ast.AST | str]]:
    """What a node may become."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        other = _COMPARISONS[type(node.ops[0])]()
        yield "comparison", ast.Compare(node.left, [other], node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        if not any(
            isinstance(x, (ast.JoinedStr, ast.List)) or _is_text(x) for x in (node.left, node.right)
        ):
            yield "arithmetic", ast.BinOp(node.left, _ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and/or", ast.BoolOp(other, node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
        yield "sign or not dropped", node.operand
    elif isinstance(node, ast.Constant):
        yield from _constant(node.value)
    elif isinstance(node, ast.IfExp):
        yield "branches swapped", ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.Call):
        yield from _call(node)
    elif isinstance(node, (ast.Expr, ast.AugAssign, ast.Raise)):
        if not (isinstance(node, ast.Expr) and _is_shown(node.value)):
            yield "statement removed", "pass"
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield "returns None", "return None"
    elif isinstance(node, ast.Continue):
        yield "loop left", "break"
    elif isinstance(node, ast.Break):
        yield "loop goes on", "continue"


def _constant(value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, bool):
        yield "constant", repr(not value)
    elif isinstance(value, int):
        yield "constant", repr(value + 1)
    elif isinstance(value, float):
        yield "constant", repr(value * 2 if value else 1.0)


def _call(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    other = _NAMES.get(_name(node.func))
    if other is not None:
        if isinstance(node.func, ast.Attribute):
            yield (
                "name",
                ast.Call(
                    ast.Attribute(node.func.value, other, ast.Load()), node.args, node.keywords
                ),
            )
        elif other not in ("mean", "sum", "ones", "zeros", "minimum", "maximum"):
            yield "name", ast.Call(ast.Name(other, ast.Load()), node.args, node.keywords)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_shown(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _name(node.func) in _SHOWN

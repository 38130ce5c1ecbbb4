"""Measure the source against the style budgets and fail where one is exceeded.

Code lines are lines that hold code: no blank, comment or docstring lines. Tests are judged by
what they would catch, not by their length, and are not measured here.
"""

import ast
import io
import statistics
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "edgepack": "contracts",
    "edgepack_targets": "targets",
    "edgepack_packager": "packager",
    "edgepack_agent": "agent",
    "edgepack_fleet": "fleet",
}
MEDIAN, P90, LONGEST, MODULE, DOCUMENTED, DEPTH = 8, 25, 60, 500, 0.95, 10
NO_CODE = {
    tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT,
    tokenize.ENDMARKER,
}  # fmt: skip
Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Definition:
    """A function or class: where it is, its code lines, whether it is public and documented."""

    where: str
    size: int
    public: bool
    documented: bool
    typed: bool


def sources() -> Iterator[Path]:
    """Yield the source files of the five packages."""
    for package, folder in PACKAGES.items():
        yield from sorted((ROOT / folder / package).rglob("*.py"))


def code_lines(text: str, tree: ast.Module) -> set[int]:
    """Return the numbers of the lines of TEXT that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, Documented) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            lines.difference_update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return lines


def is_typed(node: Function) -> bool:
    """Say whether every parameter and the result of NODE are annotated."""
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    named = [a for a in every if a.arg not in {"self", "cls"}]
    return node.returns is not None and all(a.annotation for a in named)


def definitions(path: Path) -> Iterator[Definition]:
    """Yield the functions and classes that PATH defines, nested ones too."""
    text = path.read_text()
    tree = ast.parse(text)
    lines = code_lines(text, tree)

    def visit(node: ast.AST, scope: tuple[str, ...], inside: bool) -> Iterator[Definition]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.ClassDef | Function):
                yield from visit(child, scope, inside)
                continue
            names = (*scope, child.name)
            function = isinstance(child, Function)
            span = range(child.lineno, (child.end_lineno or child.lineno) + 1)
            yield Definition(
                where=f"{path.relative_to(ROOT)}:{child.lineno} {'.'.join(names)}",
                size=len(lines.intersection(span)) if function else 0,
                public=not inside and not any(n.startswith("_") for n in names),
                documented=ast.get_docstring(child) is not None,
                typed=not function or is_typed(child),
            )
            yield from visit(child, names, inside or function)

    yield from visit(tree, (), False)


def import_shape() -> tuple[int, list[list[str]]]:
    """Return the length of the longest import chain and the cycles."""
    graph = grimp.build_graph(*PACKAGES, include_external_packages=False, cache_dir=None)
    below = {m: graph.find_modules_directly_imported_by(m) for m in graph.modules}
    depth: dict[str, int] = {}
    path: list[str] = []
    cycles: list[list[str]] = []

    def measure(module: str) -> int:
        if module in path:
            cycles.append([*path[path.index(module) :], module])
            return 0
        if module not in depth:
            path.append(module)
            depth[module] = 1 + max((measure(m) for m in sorted(below[module])), default=0)
            path.pop()
        return depth[module]

    longest = max(measure(m) for m in sorted(graph.modules))
    return longest, cycles


def problems() -> Iterator[str]:
    """Yield a line for every budget that is exceeded; print the figures on the way."""
    found = [d for path in sources() for d in definitions(path)]
    sizes = sorted(d.size for d in found if d.size)
    median, p90 = statistics.median(sizes), sizes[int(0.9 * len(sizes))]
    public = [d for d in found if d.public]
    documented = sum(d.documented for d in public) / len(public)
    depth, cycles = import_shape()
    print(
        f"functions {len(sizes)}: median {median:g}, p90 {p90}, max {sizes[-1]}; "
        f"public documented {documented:.1%}; import depth {depth}, cycles {len(cycles)}"
    )
    if median > MEDIAN:
        yield f"median function is {median:g} code lines, budget {MEDIAN}"
    if p90 > P90:
        yield f"p90 function is {p90} code lines, budget {P90}"
    yield from (
        f"{d.size} code lines, budget {LONGEST}: {d.where}" for d in found if d.size > LONGEST
    )
    yield from (f"not fully typed: {d.where}" for d in found if not d.typed)
    for path in sources():
        lines = path.read_text().count("\n")
        if lines > MODULE:
            yield f"{lines} lines, budget {MODULE}: {path.relative_to(ROOT)}"
    if documented < DOCUMENTED:
        missing = ", ".join(d.where for d in public if not d.documented)
        yield f"{documented:.1%} of public definitions documented, budget 95%: {missing}"
    if depth > DEPTH:
        yield f"import depth {depth}, budget {DEPTH}"
    yield from (f"import cycle: {' -> '.join(c)}" for c in cycles)


if __name__ == "__main__":
    failures = list(problems())
    print("\n".join(failures) if failures else "budgets: all kept")
    sys.exit(1 if failures else 0)

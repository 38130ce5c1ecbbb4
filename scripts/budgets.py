"""Measure the source against the style budgets and fail where one is exceeded.

Code lines are lines that hold code: no blank, comment or docstring lines. Tests are judged by
what they would catch, not by their length, and are not measured here.
"""

import ast
import io
import statistics
import sys
import tokenize
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

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


def import_graph() -> dict[str, set[str]]:
    """Return module -> modules it imports when it is itself imported; later ones do not count."""
    trees = {module_name(path): ast.parse(path.read_text()) for path in sources()}
    return {
        name: {m for wanted in imported(tree) if (m := longest_prefix(wanted, trees))} - {name}
        for name, tree in trees.items()
    }


def module_name(path: Path) -> str:
    """Return the import name of the source file PATH."""
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(node: ast.AST) -> Iterator[str]:
    """Yield what NODE imports, but not inside functions or for type checkers only."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Import():
                yield from (alias.name for alias in child.names)
            case ast.ImportFrom():
                yield from (f"{child.module}.{alias.name}" for alias in child.names)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                pass
            case ast.If() if "TYPE_CHECKING" in ast.unparse(child.test):
                pass
            case _:
                yield from imported(child)


def longest_prefix(name: str, known: Container[str]) -> str:
    """Return the longest prefix of NAME that is a module in KNOWN, or an empty string."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name


def import_shape() -> tuple[list[str], list[list[str]]]:
    """Return the longest import chain and the cycles."""
    graph = import_graph()
    chains: dict[str, list[str]] = {}
    path: list[str] = []
    cycles: list[list[str]] = []

    def chain(module: str) -> list[str]:
        if module in path:
            cycles.append([*path[path.index(module) :], module])
            return []
        if module not in chains:
            path.append(module)
            chains[module] = [module, *max(map(chain, sorted(graph[module])), key=len, default=[])]
            path.pop()
        return chains[module]

    return max(map(chain, sorted(graph)), key=len), cycles


def problems() -> Iterator[str]:
    """Yield a line for every budget that is exceeded; print the figures on the way."""
    found = [d for path in sources() for d in definitions(path)]
    sizes = sorted(d.size for d in found if d.size)
    median, p90 = statistics.median(sizes), sizes[int(0.9 * len(sizes))]
    public = [d for d in found if d.public]
    documented = sum(d.documented for d in public) / len(public)
    longest, cycles = import_shape()
    print(
        f"functions {len(sizes)}: median {median:g}, p90 {p90}, max {sizes[-1]}; "
        f"public documented {documented:.1%}; import depth {len(longest)}, cycles {len(cycles)}"
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
    if len(longest) > DEPTH:
        yield f"import depth {len(longest)}, budget {DEPTH}: {' > '.join(longest)}"
    yield from (f"import cycle: {' -> '.join(c)}" for c in cycles)


if __name__ == "__main__":
    failures = list(problems())
    print("\n".join(failures) if failures else "budgets: all kept")
    sys.exit(1 if failures else 0)

"""The page of attacks is complete: no attack of the lists is missing, every named test exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/reference/attacks.md").read_text()
LISTS = {
    "TUF": {
        "arbitrary software", "endless data", "extraneous dependencies", "fast-forward",
        "indefinite freeze", "malicious mirrors", "mix-and-match", "rollback", "key compromise",
        "wrong software",
    },
    "Uptane": {
        "eavesdrop", "drop-request", "slow retrieval", "freeze", "partial bundle",
        "denial of service", "rollback", "endless data", "mix-and-match", "arbitrary software",
    },
}  # fmt: skip
THEFTS = {
    "director key", "fleet host", "fleet host, during enrolment", "all online keys",
    "a line's key", "the targets key", "export key", "one root key",
}  # fmt: skip


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] not in {"attack", "stolen"}]


@pytest.mark.parametrize("name", LISTS)
def test_every_attack_of_the_lists_has_a_row(name: str) -> None:
    assert {row[0] for row in rows() if name in row[1].split(", ")} == LISTS[name]


def test_every_theft_has_a_row() -> None:
    assert {row[0] for row in rows()} >= THEFTS


def test_every_row_names_a_test() -> None:
    assert not [row[0] for row in rows() if not re.findall(r"`tests/[\w/]+\.py::test_\w+`", row[3])]


def test_every_named_test_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE)
    assert len(named) > 40
    missing = [f"{file}::{test}" for file, test in named if test not in names_in(file)]
    assert not missing


def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}

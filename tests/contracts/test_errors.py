"""Every error has an exit code of its own, a reason, and says what to do."""

import pytest

from edgepack import errors
from edgepack.errors import EdgepackError, IntegrityError, UsageError

KINDS = {
    "UsageError": 2,
    "IntegrityError": 3,
    "AccuracyError": 4,
    "UnsupportedError": 5,
    "BudgetError": 6,
    "UnreachableError": 7,
    "PartialError": 8,
}


def test_exit_codes_are_fixed() -> None:
    kinds = {name: getattr(errors, name) for name in errors.__all__ if name != "EdgepackError"}
    assert {name: kind.exit_code for name, kind in kinds.items()} == KINDS
    assert all(issubclass(kind, EdgepackError) for kind in kinds.values())
    assert len({kind.default_reason for kind in kinds.values()}) == len(kinds)


def test_diagnostics_say_what_why_and_what_to_do() -> None:
    error = UsageError("no such file", why="it was moved", fix="look again")
    assert error.diagnostics() == "error: no such file\n  why: it was moved\n  fix: look again"
    assert UsageError("no such file").diagnostics() == "error: no such file"


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (UsageError("what"), {"code": 2, "reason": "usage", "message": "what"}),
        (
            IntegrityError("what", why="why", fix="fix", reason="unsigned"),
            {"code": 3, "reason": "unsigned", "message": "what", "why": "why", "fix": "fix"},
        ),
    ],
)
def test_a_script_gets_the_same_facts(error: EdgepackError, facts: dict[str, object]) -> None:
    assert error.as_dict() == facts
    assert str(error) == facts["message"]

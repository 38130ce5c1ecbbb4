"""The errors a person or a script sees, and the exit code of each. No other module invents one.

    EdgepackError             1  never raised itself
      UsageError              2  the command or its input was wrong
      IntegrityError          3  a signature, digest or format does not hold
      AccuracyError           4  the accuracy gate said no
      UnsupportedError        5  no such operator, target, route or input here
      BudgetError             6  too slow, too big or too hungry
      UnreachableError        7  a device, broker or fleet did not answer
      PartialError            8  some variants worked, some did not

An error says what happened, why, and what to do. The command line catches
`EdgepackError` once, prints `diagnostics()` on stderr and exits with its code.
"""

from typing import ClassVar

__all__ = [
    "AccuracyError",
    "BudgetError",
    "EdgepackError",
    "IntegrityError",
    "PartialError",
    "UnreachableError",
    "UnsupportedError",
    "UsageError",
]


class EdgepackError(Exception):
    """Base of every error that reaches a person.

    Args:
        what: One line: what happened.
        why: The cause, as far as it is known.
        fix: What to do about it: a command, a flag, a place to look.
        reason: A stable machine-readable code, e.g. `digest_mismatch`.
    """

    exit_code: ClassVar[int] = 1
    default_reason: ClassVar[str] = "error"

    def __init__(self, what: str, *, why: str = "", fix: str = "", reason: str = "") -> None:
        super().__init__(what)
        self.what, self.why, self.fix = what, why, fix
        self.reason = reason or self.default_reason

    def diagnostics(self) -> str:
        """Return the message for a terminal: what, why and what to do, a line each."""
        lines = [f"error: {self.what}"]
        lines += [f"  why: {self.why}"] if self.why else []
        lines += [f"  fix: {self.fix}"] if self.fix else []
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """Return the same facts for `--json` and for messages."""
        facts = {"code": self.exit_code, "reason": self.reason, "message": self.what}
        return (
            facts
            | ({"why": self.why} if self.why else {})
            | ({"fix": self.fix} if self.fix else {})
        )


class UsageError(EdgepackError):
    """The command, a file it names or a setting is wrong."""

    exit_code = 2
    default_reason = "usage"


class IntegrityError(EdgepackError):
    """A signature, a digest or a canonical form does not hold."""

    exit_code = 3
    default_reason = "integrity"


class AccuracyError(EdgepackError):
    """The result is not as good as was asked for."""

    exit_code = 4
    default_reason = "accuracy"


class UnsupportedError(EdgepackError):
    """An operator, a target, a route or an input that cannot be done here."""

    exit_code = 5
    default_reason = "unsupported"


class BudgetError(EdgepackError):
    """Latency, memory or size is past its limit."""

    exit_code = 6
    default_reason = "budget"


class UnreachableError(EdgepackError):
    """A device, a broker or the fleet service did not answer."""

    exit_code = 7
    default_reason = "unreachable"


class PartialError(EdgepackError):
    """Some of what was asked is done, some is not."""

    exit_code = 8
    default_reason = "partial"

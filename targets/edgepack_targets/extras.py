"""Which libraries are installed, and which extra brings a missing one. Imports none of them."""

from importlib.metadata import PackageNotFoundError, version

from edgepack.errors import UnsupportedError

__all__ = ["meets", "require"]


def require(distribution: str, *, extra: str, wanted_for: str) -> str:
    """Return the installed version of DISTRIBUTION.

    Raises:
        UnsupportedError: It is not installed; the message names EXTRA.
    """
    try:
        return version(distribution)
    except PackageNotFoundError as error:
        raise UnsupportedError(
            f"{wanted_for} is not installed here",
            why=f"the distribution {distribution} is missing",
            fix=f'pip install "edgepack[{extra}]"',
            reason="extra_missing",
        ) from error


def meets(installed: str, minimum: str) -> bool:
    """Say whether version INSTALLED is at least MINIMUM (`major.minor`), number by number."""
    return _numbers(installed) >= _numbers(minimum)


def _numbers(text: str) -> tuple[int, ...]:
    """Return the leading numbers of the first two parts of a version; a missing one is 0."""
    parts = [*text.split("."), "0"][:2]
    digits = ("".join(c for c in part if c.isascii() and c.isdigit()) for part in parts)
    return tuple(int(number or 0) for number in digits)

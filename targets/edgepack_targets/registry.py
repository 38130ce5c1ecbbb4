"""Finds targets by entry point, each imported only when asked for. Knows none by name."""

from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from edgepack.errors import UnsupportedError
from edgepack_targets.interface import Target

__all__ = ["find", "installed", "names"]

GROUP = "edgepack.targets"


def names() -> list[str]:
    """Return the names of all known targets, whether their runtimes are installed or not."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def find(name: str) -> Target:
    """Return the target NAME; its runtime need not be installed yet.

    Raises:
        UnsupportedError: There is no such target; the message lists those that are known.
    """
    entry = next(iter(entry_points(group=GROUP, name=name)), None)
    if entry is None:
        known = names()
        close = get_close_matches(name.lower(), known, n=1)
        raise UnsupportedError(
            f"there is no target `{name}`",
            why=f"known targets: {', '.join(known)}",
            fix=f"did you mean `{close[0]}`?" if close else "choose one of these with --target",
            reason="unknown_target",
        )
    return _load(entry)


def _load(entry: EntryPoint) -> Target:
    try:
        return cast("Target", entry.load())
    except (ImportError, AttributeError) as error:
        raise UnsupportedError(
            f"the plugin of target `{entry.name}` cannot be loaded",
            why=f"{entry.value}: {error}",
            fix="install or update the distribution that provides it",
            reason="bad_plugin",
        ) from error


def installed() -> dict[str, str]:
    """Return the versions of the installed runtimes by target name, importing none of them."""
    found: dict[str, str] = {}
    for name in names():
        try:
            found[name] = find(name).version()
        except UnsupportedError:
            # Not installed is an answer here, not a failure.
            continue
    return found

"""Tags of devices: what they may look like, and how a change is made. No I/O."""

import re
from collections.abc import Mapping

from edgepack.errors import UsageError

__all__ = ["LONGEST_VALUE", "MOST", "changed", "checked"]

KEY = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_./-]{0,61}[A-Za-z0-9_])?")
LONGEST_VALUE = 256
"""Characters of a value."""
MOST = 32
"""Tags of one device."""


def checked(tags: Mapping[str, str]) -> dict[str, str]:
    """Return TAGS, in the order of their keys.

    Raises:
        UsageError: a key or value cannot be one, or there are too many (`bad_tag`).
    """
    for key, value in tags.items():
        if not KEY.fullmatch(key):
            raise _bad(f"{key[:80]!r} is no key: letters, digits, and . / _ - inside, 63 at most")
        if len(value) > LONGEST_VALUE or not (value and value.isprintable()):
            raise _bad(f"the value of {key} must have 1 to {LONGEST_VALUE} printable characters")
    if len(tags) > MOST:
        raise _bad(f"a device has at most {MOST} tags")
    return dict(sorted(tags.items()))


def changed(tags: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Return TAGS after CHANGES: a value is set, None takes the tag away; raises like `checked`."""
    gone = {key for key, value in changes.items() if value is None}
    new = {key: value for key, value in changes.items() if value is not None}
    return checked({k: v for k, v in tags.items() if k not in gone} | new)


def _bad(why: str) -> UsageError:
    return UsageError("this tag cannot be kept", why=why, fix="e.g. site=berlin", reason="bad_tag")

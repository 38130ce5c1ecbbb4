"""Canonical JSON: one value, one byte string. Does not validate meaning.

Sorted keys, no white space, UTF-8, shortest float that reads back the same. What we sign or
hash is always written by `dumps` and read by `loads`, so that no byte is free to change.
"""

import json
from typing import Any

from edgepack.errors import IntegrityError

__all__ = ["dumps", "loads"]


def dumps(value: Any) -> bytes:
    """Return VALUE as canonical JSON.

    Raises:
        ValueError: VALUE holds NaN or an infinity, which JSON cannot say.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def loads(data: bytes, *, what: str = "document") -> Any:
    """Return the value of DATA, which must be canonical to the byte.

    Args:
        data: The bytes to read.
        what: Name of the document for the error message.

    Raises:
        IntegrityError: DATA is not JSON, or another byte string stands for the same value.
    """
    try:
        value = json.loads(data)
        same = dumps(value) == data
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"{what} is not valid JSON", why=str(error), reason="bad_json"
        ) from error
    if not same:
        raise IntegrityError(f"{what} is not in canonical form", reason="not_canonical")
    return value

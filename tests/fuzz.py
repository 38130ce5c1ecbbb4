"""For fuzzing parsers: JSON values, documents that are almost right, and why one was refused.

EDGEPACK_FUZZ=50 in the environment makes the runs of `examples` fifty times as long.
"""

import copy
import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from edgepack.errors import EdgepackError


def examples(count: int) -> settings:
    """Return settings for COUNT examples, with fixtures that all of them share."""
    longer = int(os.environ.get("EDGEPACK_FUZZ", "1"))
    shared = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count * longer, suppress_health_check=shared)


def refusal(read: Callable[..., object], *arguments: object) -> str | None:
    """Return the reason for which READ refuses ARGUMENTS; None if it does not.

    Whatever is no `EdgepackError` goes through, and fails the test.
    """
    try:
        read(*arguments)
    except EdgepackError as error:
        return error.reason
    return None


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
)
json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)


@st.composite
def almost(draw: st.DrawFn, document: Any) -> Any:
    """Return DOCUMENT with one place somewhere inside replaced, taken out or doubled."""
    changed = copy.deepcopy(document)
    holder, place = changed, None
    while isinstance(holder, dict | list) and holder:
        keys = sorted(holder) if isinstance(holder, dict) else range(len(holder))
        place = draw(st.sampled_from(keys))
        if not isinstance(holder[place], dict | list) or draw(st.booleans()):
            break
        if not holder[place]:
            break
        holder = holder[place]
    action = draw(st.sampled_from(["replace", "remove", "double"]))
    if action == "replace":
        holder[place] = draw(json_values)
    elif action == "remove":
        del holder[place]
    elif isinstance(holder, list):
        holder.append(holder[place])
    else:
        holder[f"{place}2"] = holder[place]
    return changed


_SPLICES = (
    b"\x00", b"\xff", b"\xc3", b"[" * 5000, b'{"a":' * 2000, b"9" * 5000, b"-1", b"1e999", b"null",
    b'"', b"\\ud800", b"\r\n", b"../", b"\x80" * 12,
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, sample: bytes) -> bytes:
    """Return the bytes of SAMPLE after one to three of what disks and strangers do to them."""
    data = bytearray(sample)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 40)))
        action = draw(st.sampled_from(["flip", "splice", "cut", "zero", "double", "end", "other"]))
        if action == "flip" and start < len(data):
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif action == "splice":
            data[start:end] = draw(st.sampled_from(_SPLICES))
        elif action == "cut":
            del data[start:end]
        elif action == "zero":
            data[start:end] = bytes(end - start)
        elif action == "double":
            data[end:end] = data[start:end]
        elif action == "end":
            del data[start:]
        else:
            data[start:end] = draw(st.binary(max_size=40))
    return bytes(data)

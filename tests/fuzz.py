"""For fuzzing parsers: JSON values, documents that are almost right, and why one was refused."""

import copy
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from edgepack.errors import EdgepackError


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

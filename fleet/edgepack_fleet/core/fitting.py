"""Whether a device fits a filter, and so which groups it is in. Pure.

What is known of the device is looked up by field.

A fact that is not known fits nothing but `!=`, which is the same as `not ... =`. What looks like
a number or a version on both sides is compared as one, everything else as text.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edgepack_fleet.core.filters import All, Any, Comparison, Filter, Not, Value

__all__ = ["Fact", "Facts", "Group", "belongs", "fits", "groups_of"]

Fact = str | int | float | bool | frozenset[str] | None
"""A set fits `=` if one of its members does."""
Facts = Callable[[str], Fact]
NUMBER = re.compile(r"-?\d{1,15}(?:\.\d{1,15})?", re.ASCII)
VERSION = re.compile(r"(\d{1,9}(?:\.\d{1,9}){1,7})(?:$|[^\d.].*)", re.ASCII | re.DOTALL)
Ordered = tuple[int, ...] | float | str


@dataclass(frozen=True, slots=True)
class Group:
    """A named set of devices."""

    id: str
    filter: Filter | None = None
    """Which devices are in it; None: those that were put into it."""


def belongs(group: Group, facts: Facts) -> bool:
    """Return whether a device of which FACTS are known is in GROUP."""
    if group.filter is not None:
        return fits(group.filter, facts)
    put = facts("group")
    return isinstance(put, frozenset) and group.id in put


def groups_of(groups: Iterable[Group], facts: Facts) -> frozenset[str]:
    """Return the ids of those of GROUPS that a device is in of which FACTS are known."""
    return frozenset(group.id for group in groups if belongs(group, facts))


def fits(wanted: Filter, facts: Facts) -> bool:
    """Return whether a device of which FACTS are known is WANTED."""
    match wanted:
        case Comparison():
            return _compares(wanted, facts(wanted.field))
        case Not():
            return not fits(wanted.part, facts)
        case All():
            return all(fits(part, facts) for part in wanted.parts)
        case Any():
            return any(fits(part, facts) for part in wanted.parts)


def _compares(wanted: Comparison, fact: Fact) -> bool:
    if wanted.op == "!=":
        return not _is_one_of(fact, wanted.values)
    if wanted.op in {"=", "in"}:
        return _is_one_of(fact, wanted.values)
    if fact is None or isinstance(fact, bool | frozenset):
        return False
    return _in_order(wanted.op, fact, wanted.values[0].text)


def _is_one_of(fact: Fact, values: tuple[Value, ...]) -> bool:
    members = fact if isinstance(fact, frozenset) else () if fact is None else (fact,)
    return any(_is(member, value) for member in members for value in values)


def _is(fact: str | float | bool, value: Value) -> bool:
    if isinstance(fact, bool):
        return value.text == ("true" if fact else "false")
    if isinstance(fact, int | float):
        return NUMBER.fullmatch(value.text) is not None and fact == float(value.text)
    if value.literal or "*" not in value.text:
        return fact == value.text
    return _matches(value.text, fact)


def _matches(pattern: str, fact: str) -> bool:
    """Return whether FACT is like PATTERN; looks at every character once, however many stars."""
    first, *middle, last = pattern.split("*")
    if len(fact) < len(first) + len(last) or not fact.startswith(first):
        return False
    at = len(first)
    for part in middle:
        found = fact.find(part, at, len(fact) - len(last))
        if found < 0:
            return False
        at = found + len(part)
    return fact.endswith(last)


def _in_order(op: str, fact: str | float, text: str) -> bool:
    mine, other = _ordered(fact, text)
    if type(mine) is not type(other):
        return False
    below, same = mine < other, mine == other  # type: ignore[operator]  # of one type, see above
    return {"<": below, "<=": below or same, ">": not (below or same), ">=": not below}[op]


def _ordered(fact: str | float, text: str) -> tuple[Ordered, Ordered]:
    """Return both sides as what they are compared as; of different types if they cannot be."""
    if isinstance(fact, int | float):
        return float(fact), float(text) if NUMBER.fullmatch(text) else text
    if NUMBER.fullmatch(fact) and NUMBER.fullmatch(text):
        versions = fact.count(".") and text.count(".")
        return (_version(fact), _version(text)) if versions else (float(fact), float(text))
    if VERSION.match(fact) and (VERSION.match(text) or NUMBER.fullmatch(text)):
        return _version(fact), _version(text)
    return fact, text


def _version(text: str) -> tuple[int, ...]:
    """Return the leading numbers of TEXT without zeros at the end: 1.10.0 is 1.10."""
    found = re.match(r"\d{1,9}(?:\.\d{1,9}){0,7}", text, re.ASCII)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)

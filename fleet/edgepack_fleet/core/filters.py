"""The filter language of lists and groups: `target=onnx and tag.site=berlin and not online=true`.

    or    := and ("or" and)*
    and   := not ("and" not)*
    not   := "not" not | "(" or ")" | comparison
    comparison := FIELD ("=" | "!=" | "<" | "<=" | ">" | ">=") VALUE | FIELD "in" "(" VALUE, ... ")"

A value is a word or a text in double quotes; in a word that is compared with `=`, `!=` or `in`,
`*` stands for any characters. Reads only: what a filter means for a device is in `fitting`.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from edgepack.errors import UsageError

__all__ = [
    "FIELDS",
    "LONGEST",
    "All",
    "Any",
    "Comparison",
    "Filter",
    "FilterError",
    "Not",
    "Value",
    "fields_of",
    "parse_filter",
]

FIELDS: dict[str, str] = {
    "id": "the device's id",
    "name": "the name people gave it",
    "group": "a group it was put into; not one that is a filter itself",
    "online": "whether it is connected",
    "bundle": "`name@version` it reports",
    "target": "the runtime it prefers",
    "agent": "the version of its agent",
    "revoked": "whether it is revoked",
    "override": "whether it runs what a person installed at the device",
    "tag.KEY": "the value of a tag",
    "inventory.NAME": "a fact of its inventory: `inventory.ram_mb`, `inventory.runtimes.onnx`",
}
"""Every field, and what it is."""
LONGEST = 1000
"""Characters of a filter."""
DEEPEST = 20
"""Parentheses and `not` inside each other."""
TOKEN = re.compile(
    r'\s*(?:([(),]|!=|<=|>=|=|<|>)|("(?:[^"\\]|\\.)*")|([^\s()=!<>,"]+)|(\S))', re.DOTALL
)
OPERATORS = frozenset({"=", "!=", "<", "<=", ">", ">="})
KEYWORDS = frozenset({"and", "or", "not", "in"})
KEY = re.compile(r"(?:tag|inventory)\.[A-Za-z0-9_][A-Za-z0-9_./-]*")


class FilterError(UsageError):
    """A filter cannot be read; `why` says at which character."""

    default_reason = "bad_filter"


@dataclass(frozen=True, slots=True)
class Value:
    """What a fact is compared with."""

    text: str
    literal: bool = False
    """Whether it was quoted: `*` is a star then."""

    def __str__(self) -> str:
        """Return it as it is written in a filter."""
        return json.dumps(self.text, ensure_ascii=False) if self.literal else self.text


@dataclass(frozen=True, slots=True)
class Comparison:
    """A fact of the device, compared with a value, or looked for among several (`in`)."""

    field: str
    op: str
    values: tuple[Value, ...]

    def __str__(self) -> str:
        """Return it as it is written in a filter."""
        if self.op == "in":
            return f"{self.field} in ({', '.join(map(str, self.values))})"
        return f"{self.field}{self.op}{self.values[0]}"


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite."""

    part: "Filter"

    def __str__(self) -> str:
        """Return it as it is written in a filter."""
        return f"not {_inside(self.part)}"


@dataclass(frozen=True, slots=True)
class All:
    """Every part must hold."""

    parts: tuple["Filter", ...]

    def __str__(self) -> str:
        """Return it as it is written in a filter."""
        return " and ".join(map(_inside, self.parts))


@dataclass(frozen=True, slots=True)
class Any:
    """One part must hold."""

    parts: tuple["Filter", ...]

    def __str__(self) -> str:
        """Return it as it is written in a filter."""
        return " or ".join(map(_inside, self.parts))


Filter = Comparison | Not | All | Any


def parse_filter(text: str) -> Filter:
    """Return the filter that is written in TEXT.

    Raises:
        FilterError: it cannot be read.
    """
    if len(text) > LONGEST:
        raise FilterError(f"a filter has at most {LONGEST} characters; this one has {len(text)}")
    if "\0" in text:
        raise FilterError("a filter is text", why="it has a NUL, which databases do not take")
    reader = _Reader(text)
    found = reader.either(0)
    if reader.now.kind != "end":
        raise reader.wrong("and, or, or the end of the filter belongs here")
    return found


def fields_of(found: Filter) -> frozenset[str]:
    """Return the fields that a filter looks at."""
    match found:
        case Comparison():
            return frozenset({found.field})
        case Not():
            return fields_of(found.part)
        case All() | Any():
            return frozenset().union(*map(fields_of, found.parts))


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    """`sign`, `text`, `word` or `end`."""
    text: str
    at: int


class _Reader:
    """Reads a filter from left to right, one token ahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self.now = next(self._tokens)

    def either(self, depth: int) -> Filter:
        parts = [self._both(depth)]
        while self._word("or"):
            parts.append(self._both(depth))
        return parts[0] if len(parts) == 1 else Any(tuple(parts))

    def _both(self, depth: int) -> Filter:
        parts = [self._one(depth)]
        while self._word("and"):
            parts.append(self._one(depth))
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _one(self, depth: int) -> Filter:
        if depth > DEEPEST:
            raise self.wrong("it is nested too deeply")
        if self._word("not"):
            return Not(self._one(depth + 1))
        if self._sign("("):
            found = self.either(depth + 1)
            if not self._sign(")"):
                raise self.wrong("a ) is missing")
            return found
        return self._comparison()

    def _comparison(self) -> Comparison:
        field = self._field()
        if self._word("in"):
            return Comparison(field, "in", self._list())
        if self.now.kind != "sign" or self.now.text not in OPERATORS:
            raise self.wrong("a comparison belongs here, such as = or >=")
        return Comparison(field, self._take().text, (self._value(),))

    def _field(self) -> str:
        name = self.now.text
        if self.now.kind != "word" or name in KEYWORDS:
            raise self.wrong("a field belongs here")
        if name not in FIELDS and not KEY.fullmatch(name):
            raise self.wrong(f"there is no field {name[:60]!r}")
        return self._take().text

    def _list(self) -> tuple[Value, ...]:
        if not self._sign("("):
            raise self.wrong("a ( belongs after in")
        values = [self._value()]
        while self._sign(","):
            values.append(self._value())
        if not self._sign(")"):
            raise self.wrong("a , or a ) belongs here")
        return tuple(values)

    def _value(self) -> Value:
        if self.now.kind == "text":
            at, quoted = self.now, self._take().text
            try:
                return Value(str(json.loads(quoted)), literal=True)
            except ValueError as error:
                raise self.wrong("this text cannot be read", at) from error
        if self.now.kind != "word":
            raise self.wrong("a value belongs here")
        return Value(self._take().text)

    def _word(self, keyword: str) -> bool:
        return self._if(self.now.kind == "word" and self.now.text == keyword)

    def _sign(self, sign: str) -> bool:
        return self._if(self.now.kind == "sign" and self.now.text == sign)

    def _if(self, here: bool) -> bool:
        if here:
            self._take()
        return here

    def _take(self) -> _Token:
        taken, self.now = self.now, next(self._tokens)
        return taken

    def wrong(self, said: str, at: _Token | None = None) -> FilterError:
        """Return the error for what stands here."""
        place = (at or self.now).at
        rest = self._text[place : place + 30]
        where = f"before {rest!r}" if rest else "at the end"
        return FilterError(
            "this filter cannot be read",
            why=f"{said}: character {place + 1}, {where}",
            fix=f"fields are {', '.join(FIELDS)}; e.g. tag.site=berlin and inventory.ram_mb>=2048",
        )


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while found := TOKEN.match(text, at):
        sign, quoted, word, odd = found.groups()
        kind = "sign" if sign else "text" if quoted else "word" if word else "odd"
        yield _Token(kind, sign or quoted or word or odd, found.start(found.lastindex or 0))
        at = found.end()
    while True:
        yield _Token("end", "", len(text))


def _inside(part: Filter) -> str:
    return f"({part})" if isinstance(part, All | Any) else str(part)

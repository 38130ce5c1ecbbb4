"""The filter language: what can be written, where it is wrong, and which devices fit."""

import contextlib
import fnmatch
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_fleet.core.filters import (
    LONGEST,
    All,
    Any,
    Comparison,
    Filter,
    FilterError,
    Not,
    Value,
    fields_of,
    parse_filter,
)
from edgepack_fleet.core.fitting import Fact, fits

CAM: dict[str, Fact] = {
    "id": "cam-7",
    "group": frozenset({"cameras", "berlin"}),
    "online": True,
    "bundle": "person@1.4.0",
    "agent": "0.10.2",
    "revoked": False,
    "tag.site": "berlin",
    "tag.note": "two words",
    "tag.rank": "10",
    "inventory.ram_mb": 4096,
    "inventory.cpu_features": frozenset({"avx2", "vnni"}),
    "inventory.runtimes.onnx": "1.23.2",
    "inventory.runtimes.openvino": "2025.4.0-20398-abc",
}


@pytest.mark.parametrize(
    "text",
    [
        "tag.site=berlin",
        "target!=tflite",
        'tag.note="two words"',
        "tag.site = berlin and inventory.ram_mb>=2048 and online=true",
        "not bundle=person@1.3.0 and inventory.ram_mb < 8000.5 or revoked=true",
        "id in (cam-1, cam-7) and group=cam*",
        "not (tag.a=1 or tag.b=2) and not not id=cam-7",
        "inventory.cpu_features=vnni",
        "inventory.runtimes.onnx>=1.9 and agent>0.9",
        "tag.and=and and tag.in in (in)",
        "inventory.runtimes.openvino>=2025.2",
        "tag.rank>9",
    ],
)
def test_what_fits_and_its_opposite_does_not(text: str) -> None:
    cam = CAM | {"tag.and": "and", "tag.in": "in"}
    assert fits(parse_filter(text), cam.get)
    assert not fits(parse_filter(f"not ({text})"), cam.get)


@pytest.mark.parametrize(
    "text",
    [
        "tag.missing=berlin",
        "tag.missing>1",
        "inventory.ram_mb=lots",
        "inventory.ram_mb>lots",
        "online=yes",
        "online>1",
        "group>a",
        "inventory.runtimes.onnx>=1.24",
        'id="cam*"',
        "id in (cam-1, cam-2)",
        "bundle!=person*",
    ],
)
def test_what_does_not_fit(text: str) -> None:
    assert not fits(parse_filter(text), CAM.get)


def test_what_is_not_known_is_different_from_anything() -> None:
    assert fits(parse_filter("tag.missing!=x and not tag.missing=x"), CAM.get)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("", 1),
        ("site=berlin", 1),
        ("tag.site", 9),
        ("tag.site=", 10),
        ("tag.site=berlin tag.x=1", 17),
        ("tag.site==berlin", 10),
        ("(tag.site=berlin", 17),
        ("tag.site=berlin)", 16),
        ("tag.site=berlin and", 20),
        ("tag.site in berlin", 13),
        ("tag.site in (berlin", 20),
        ("tag.site in ()", 14),
        ("online=true or and", 16),
        ('tag.note="two', 10),
        (r'tag.note="\q"', 10),
        ("tag.=x", 1),
        ("not " * 40 + "online=true", 85),
        ("(" * 40 + "online=true" + ")" * 40, 22),
    ],
)
def test_what_is_wrong_is_said_where_it_is(text: str, at: int) -> None:
    with pytest.raises(FilterError) as caught:
        parse_filter(text)
    assert f"character {at}," in caught.value.why
    assert caught.value.reason == "bad_filter"


def test_a_filter_has_an_end() -> None:
    with pytest.raises(FilterError):
        parse_filter("id=" + "x" * LONGEST)


@given(st.text(max_size=200))
def test_any_text_is_a_filter_or_is_refused(text: str) -> None:
    with contextlib.suppress(FilterError):
        found = parse_filter(text)
        assert parse_filter(str(found)) == found
        assert fits(found, CAM.get) in {True, False}


pieces = st.sampled_from(
    ["and", "or", "not", "in", "(", ")", ",", "=", "!=", "<", ">=", "tag.a", "id", "online",
     "inventory.ram_mb", '"x y"', "true", "4096", "cam*", " ", '"', "\\", "é", "\x00"]
)  # fmt: skip


@given(st.lists(pieces, max_size=30).map(" ".join))
def test_nothing_but_a_filter_error_comes_of_pieces(text: str) -> None:
    with contextlib.suppress(FilterError):
        assert parse_filter(str(parse_filter(text))) == parse_filter(text)


plain = st.from_regex(r"[A-Za-z0-9.@*+_-]{1,8}", fullmatch=True)
values = st.builds(Value, plain) | st.builds(
    Value, st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.just(value=True)
)
names = st.sampled_from([*CAM, "tag.missing"])
comparisons = st.builds(
    Comparison, names, st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), st.tuples(values)
) | st.builds(Comparison, names, st.just("in"), st.lists(values, min_size=1, max_size=3).map(tuple))


def grow(inner: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    parts = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.builds(Not, inner) | st.builds(All, parts) | st.builds(Any, parts)


filters = st.recursive(comparisons, grow, max_leaves=6)


@given(filters)
def test_what_is_written_is_what_is_read(made: Filter) -> None:
    assert parse_filter(str(made)) == made
    assert fields_of(made) <= {*CAM, "tag.missing"}


@given(filters, filters)
def test_it_is_plain_logic(one: Filter, two: Filter) -> None:
    first, second = fits(one, CAM.get), fits(two, CAM.get)
    assert fits(All((one, two)), CAM.get) is (first and second)
    assert fits(Any((one, two)), CAM.get) is (first or second)
    assert fits(Not(one), CAM.get) is not first


@given(names, values)
def test_not_equal_is_not_equal(name: str, value: Value) -> None:
    equal = fits(Comparison(name, "=", (value,)), CAM.get)
    assert fits(Comparison(name, "!=", (value,)), CAM.get) is not equal


@given(st.text("ab*", max_size=8), st.text("ab", max_size=8))
def test_stars_stand_for_anything(pattern: str, fact: str) -> None:
    wanted = Comparison("id", "=", (Value(pattern),))
    assert fits(wanted, {"id": fact}.get) is fnmatch.fnmatchcase(fact, pattern)


@given(st.integers(-99, 99), st.integers(-99, 99), st.booleans())
def test_numbers_are_ordered_as_numbers(fact: int, limit: int, text: bool) -> None:
    order: dict[str, Callable[[int, int], bool]] = {
        "<": int.__lt__, "<=": int.__le__, ">": int.__gt__, ">=": int.__ge__,
    }  # fmt: skip
    known: Fact = str(fact) if text else fact
    for op, holds in order.items():
        wanted = Comparison("tag.n", op, (Value(str(limit)),))
        assert fits(wanted, {"tag.n": known}.get) is holds(fact, limit)

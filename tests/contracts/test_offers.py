"""Offers of patches: read strictly, few, and clean behind themselves."""

import hashlib
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.offers import (
    MAX_DOCUMENT,
    MAX_OFFERS,
    Offer,
    OfferDirectory,
    Offers,
    merge,
    offers_name,
    read_offers,
    write_offers,
)
from fuzz import almost, refusal

TARGET = "a" * 64


def offer(base: int = 1, patch: int = 2, codec: str = "zstd", size: int = 10) -> Offer:
    return Offer(base=_hex(base), base_size=100, codec=codec, patch=_hex(patch), size=size)


def _hex(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def offers(*every: Offer) -> Offers:
    return Offers(target=TARGET, target_size=100, offers=every)


def test_offers_are_read_as_they_were_written() -> None:
    every = offers(offer(), offer(2, 3, "later-codec"))
    assert read_offers(write_offers(every), TARGET, 100) == every


def test_what_is_not_of_this_blob_or_not_smaller_is_refused() -> None:
    good = write_offers(offers(offer()))
    assert refusal(read_offers, good, "b" * 64) == "bad_offers"
    assert refusal(read_offers, good, TARGET, 101) == "bad_offers"
    for wrong in (
        offers(offer(size=100)),
        offers(msgspec.structs.replace(offer(), patch=TARGET)),
        offers(msgspec.structs.replace(offer(), base=TARGET)),
        offers(*(offer(n) for n in range(MAX_OFFERS + 1))),
    ):
        assert refusal(read_offers, write_offers(wrong), TARGET) == "bad_offers"
    assert refusal(read_offers, good + b" " * MAX_DOCUMENT, TARGET) == "bad_offers"


@settings(max_examples=60, deadline=None)
@given(almost(msgspec.to_builtins(offers(offer(), offer(2, 3)))))
def test_no_document_does_harm(document: object) -> None:
    assert refusal(read_offers, msgspec.json.encode(document), TARGET) in {None, "bad_offers"}


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_do_harm(data: bytes) -> None:
    assert refusal(read_offers, data, TARGET) == "bad_offers"


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["zstd", "bsdiff"])), max_size=60))
def test_the_newest_offers_stay_one_for_a_base_and_codec(made: list[tuple[int, str]]) -> None:
    found = offers()
    for number, (base, codec) in enumerate(made):
        found = merge(found, [offer(base, 100 + number, codec)])
    kept = [(o.base, o.codec) for o in found.offers]
    assert len(kept) == len(set(kept)) <= MAX_OFFERS
    newest = list(dict.fromkeys((_hex(base), codec) for base, codec in reversed(made)))
    assert kept == newest[:MAX_OFFERS][::-1]


def test_a_directory_names_the_patches_that_nothing_leads_to_any_more(tmp_path: Path) -> None:
    place = OfferDirectory(tmp_path / "patches")
    assert place.add(TARGET, 100, [offer(1, 2)]) == frozenset()
    assert place.add("b" * 64, 100, [offer(1, 2)]) == frozenset()
    assert place.add(TARGET, 100, [offer(1, 3)]) == frozenset()  # the other blob has patch 2 still
    assert place.add(TARGET, 100, [offer(1, 4)]) == {_hex(3)}
    assert place.read(TARGET, 100).offers == (offer(1, 4),)


def test_a_directory_serves_its_files_and_nothing_else(tmp_path: Path) -> None:
    place = OfferDirectory(tmp_path / "patches")
    (tmp_path / "secret.patches.json").write_bytes(b"s")
    place.add(TARGET, 100, [offer()])
    assert place.file(offers_name(TARGET)) == write_offers(offers(offer()))
    for name in ("../secret.patches.json", offers_name("b" * 64), "timestamp.json", ""):
        assert place.file(name) is None
    (tmp_path / "patches" / offers_name(TARGET)).write_bytes(b"torn")
    assert place.read(TARGET, 100).offers == ()

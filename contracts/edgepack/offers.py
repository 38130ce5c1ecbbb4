"""Which patches lead to a blob: a small document beside it, signed by nobody. Fetches nothing.

    patches/HEX.patches.json      in a repository in a directory, and in a fleet's

A device that holds one of the bases may fetch a patch in place of the blob. What comes of it is
checked against the blob's signed digest, so the worst a forged document can do is to waste
bytes; that is bounded here: a patch is always smaller than its target, there are few of them,
and a device tries none twice.
"""

import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgepack.durable import write_file
from edgepack.errors import IntegrityError
from edgepack.manifest import Sha256
from edgepack.patch import MAX_SIZE, PatchError, read_header

__all__ = [
    "MAX_DOCUMENT",
    "MAX_OFFERS",
    "MIN_TARGET",
    "Offer",
    "OfferDirectory",
    "Offers",
    "check_offer",
    "merge",
    "offers_name",
    "read_offers",
    "write_offers",
]

MAX_OFFERS = 16
"""Patches to one target; the newest stay."""
MAX_DOCUMENT = 64 * 1024
"""Bytes a document of offers may have."""
MIN_TARGET = 32 * 1024
"""Bytes below which a blob is not worth a patch, nor the question for one."""

Size = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIZE)]


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A patch: the blob it needs as its base, and the blob it is."""

    base: Sha256
    base_size: Size
    codec: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,32}(?![\s\S])")]
    """One that a device does not know is no offer to it."""
    patch: Sha256
    size: Size


class Offers(msgspec.Struct, frozen=True, kw_only=True):
    """All patches that lead to one blob."""

    schema: Literal["edgepack.offers/v1"] = "edgepack.offers/v1"
    target: Sha256
    target_size: Size
    offers: Annotated[tuple[Offer, ...], msgspec.Meta(max_length=MAX_OFFERS)] = ()


def offers_name(target: str) -> str:
    """Return the name under which the offers for the blob TARGET are asked for."""
    return f"{target}.patches.json"


def write_offers(offers: Offers) -> bytes:
    """Return OFFERS as JSON."""
    return msgspec.json.encode(offers)


def read_offers(data: bytes, target: str, size: int | None = None) -> Offers:
    """Return DATA as the offers for the blob TARGET, of SIZE bytes if that is known.

    Raises:
        IntegrityError: it is not that (reason `bad_offers`).
    """
    if len(data) > MAX_DOCUMENT:
        raise _bad(f"{len(data)} bytes, at most {MAX_DOCUMENT} are read")
    try:
        found = msgspec.json.decode(data, type=Offers)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(str(error)) from error
    if found.target != target or size not in {None, found.target_size}:
        raise _bad("they are of another blob")
    if any(offer.size >= found.target_size for offer in found.offers):
        raise _bad("a patch is not smaller than what it makes")
    if any(target in {offer.base, offer.patch} for offer in found.offers):
        raise _bad("a patch needs its own result")
    return found


def merge(known: Offers, more: Iterable[Offer]) -> Offers:
    """Return KNOWN with MORE offers: one for a base and codec, the newest `MAX_OFFERS` in all."""
    every = {(offer.base, offer.codec): offer for offer in known.offers}
    for offer in more:
        every.pop((offer.base, offer.codec), None)
        every[offer.base, offer.codec] = offer
    return msgspec.structs.replace(known, offers=tuple(every.values())[-MAX_OFFERS:])


def check_offer(offer: Offer, target: str, size: int, head: bytes) -> None:
    """Check that a patch which begins with HEAD is what OFFER says it is.

    Raises:
        PatchError: it is not a patch, or one of other blobs.
    """
    header = read_header(io.BytesIO(head))
    said = (offer.codec, offer.base, offer.base_size, target, size)
    found = (header.codec, header.base, header.base_size, header.target, header.target_size)
    if said != found or offer.size >= size:
        raise PatchError("the patch is not what it is offered as", reason="bad_offers")


class OfferDirectory:
    """The offers of one repository, a file for each blob that patches lead to.

    Args:
        path: Made when the first offer comes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def file(self, name: str) -> bytes | None:
        """Return the file NAME as it is served; None if it is not one, or not there."""
        if not _NAME.fullmatch(name):
            return None
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None

    def read(self, target: str, size: int) -> Offers:
        """Return the offers for the blob TARGET of SIZE bytes; what cannot be read is none."""
        data = self.file(offers_name(target))
        try:
            return read_offers(data or b"", target, size)
        except IntegrityError:
            return Offers(target=target, target_size=size)

    def add(self, target: str, size: int, more: Iterable[Offer]) -> frozenset[str]:
        """Add MORE offers for the blob TARGET.

        Returns:
            Patches, by SHA-256 in hex, that no offer leads to any more.

        Raises:
            IntegrityError: they are no offers for it.
        """
        before = self.read(target, size)
        data = write_offers(merge(before, more))
        after = read_offers(data, target, size)
        write_file(self._path / offers_name(target), data)
        return _patches(before) - _patches(after) - self._others(target)

    def _others(self, target: str) -> set[str]:
        """Return the patches that blobs other than TARGET have."""
        found: set[str] = set()
        for path in self._path.glob("*.patches.json"):
            if (other := path.name.partition(".")[0]) != target:
                found |= _patches(read_offers(path.read_bytes(), other))
        return found


_NAME = re.compile(r"[0-9a-f]{64}\.patches\.json")


def _patches(offers: Offers) -> frozenset[str]:
    return frozenset(offer.patch for offer in offers.offers)


def _bad(why: str) -> IntegrityError:
    return IntegrityError("the offers of patches cannot be read", why=why, reason="bad_offers")

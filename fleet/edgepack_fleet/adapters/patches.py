"""The patches that are offered in place of blobs. Makes none, and believes none to be right.

A device checks what a patch makes against the signed digest. What is checked here keeps mistakes
out and the disk clean: an offer is of a patch that is here, between blobs that are here, and a
patch that no offer leads to is removed.
"""

from collections.abc import Sequence
from pathlib import Path

from edgepack.errors import IntegrityError, UsageError
from edgepack.offers import Offer, OfferDirectory, Offers, check_offer
from edgepack.patch import CODECS
from edgepack_fleet.adapters.content import Content
from edgepack_fleet.adapters.lock import alone

__all__ = ["Patches"]

HEAD = 128
"""Bytes from the beginning of a patch in which its header is."""


class Patches:
    """The offers in DIRECTORY, of patches in CONTENT."""

    def __init__(self, directory: Path, content: Content) -> None:
        self._offers, self._content = OfferDirectory(directory), content
        self._directory = directory

    def file(self, name: str) -> bytes | None:
        """Return the file NAME as a device asks for it; None if there is none."""
        return self._offers.file(name)

    def offers(self, target: str, size: int) -> Offers:
        """Return the offers for the blob TARGET of SIZE bytes."""
        return self._offers.read(target, size)

    def add(self, target: str, size: int, more: Sequence[Offer]) -> None:
        """Offer MORE patches to the blob TARGET of SIZE bytes; those they replace are removed.

        Raises:
            UsageError: a blob of an offer is not here (reason `blob_missing`).
            IntegrityError: a patch is not what it is offered as.
        """
        self._check_here(target, size)
        for offer in more:
            self._check_here(offer.base, offer.base_size)
            self._check_here(offer.patch, offer.size)
            if offer.codec not in CODECS:
                raise IntegrityError(f"no codec {offer.codec} is known", reason="bad_offers")
            check_offer(offer, target, size, self._content.read(offer.patch, 0, HEAD))
        self._directory.mkdir(parents=True, exist_ok=True)
        with alone(self._directory):
            for patch in self._offers.add(target, size, more):
                self._content.drop(patch)

    def _check_here(self, sha256: str, size: int) -> None:
        if self._content.size(sha256) != size:
            raise UsageError(
                f"there is no blob {sha256[:12]} of {size} bytes here",
                fix="publish its release again",
                reason="blob_missing",
            )

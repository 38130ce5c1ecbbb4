"""Is a patch worth trying, and what if it does not work? Pure; fetches nothing.

A patch is not signed, so it is given little to spoil: it must be smaller than what is missing,
all patches that were tried for one blob together smaller than the blob, and one that did not
work is not tried again. One whose application was cut short (by a power cut, or by what the
patch itself did to the device) gets a few more goes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgepack.offers import MIN_TARGET, Offer

__all__ = ["MAX_GOES", "Fallback", "Report", "choose", "may_be_whole"]

MAX_GOES = 3
"""Times that applying one patch is begun."""
Fallback = Literal["full", "never"]


@dataclass(frozen=True, slots=True)
class Report:
    """How one patch did: `reason` is empty if it made its blob of `size` bytes."""

    target: str
    codec: str
    patch_bytes: int
    size: int
    reason: str = ""
    why: str = ""

    def facts(self) -> dict[str, Any]:
        """Return it as it stands in the detail of a job."""
        failed = {"reason": self.reason, "why": self.why} if self.reason else {}
        return {
            "target": f"sha256:{self.target}",
            "codec": self.codec,
            "bytes": self.patch_bytes,
            "whole": self.size,
        } | failed


def choose(
    offers: Sequence[Offer],
    size: int,
    missing: int,
    *,
    held: Collection[str],
    codecs: Collection[str],
    goes: Mapping[str, int],
) -> Offer | None:
    """Return the smallest of OFFERS that is worth a try; None: there is none.

    Args:
        offers: Patches to one blob.
        size: Of that blob, in bytes.
        missing: Bytes of it that are still to fetch.
        held: Blobs that are here.
        codecs: Those that can be applied here.
        goes: How often each patch was begun; `MAX_GOES` for one that did not work.
    """
    spent = {offer.patch: offer.size for offer in offers if goes.get(offer.patch, 0)}
    usable = [
        offer
        for offer in offers
        if offer.base in held
        and offer.codec in codecs
        and offer.size < missing
        and goes.get(offer.patch, 0) < MAX_GOES
        and sum((spent | {offer.patch: offer.size}).values()) < size
    ]
    return min(usable, key=lambda offer: offer.size, default=None)


def may_be_whole(size: int, fallback: Fallback, *, failed: bool) -> bool:
    """Return whether a blob of SIZE bytes may be fetched whole, if a patch FAILED or none did."""
    return size < MIN_TARGET or fallback == "full" or not failed

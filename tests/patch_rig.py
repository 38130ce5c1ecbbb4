"""Patches between two small models, and the offers of them, for tests of the device's side."""

import hashlib
import io
from functools import cache

from delta_rig import model
from edgepack.offers import Offer, Offers, write_offers
from edgepack.patch import Codec, Frame, Header, write_frame, write_header
from edgepack_packager.workers.patches import encode

SIZE = 120_000
OLD, NEW = model(size=SIZE), model(800, size=SIZE)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@cache
def make_patch(old: bytes, new: bytes, codec: Codec = "bsdiff", payload: bytes = b"") -> bytes:
    file = io.BytesIO()
    write_header(file, Header(codec, digest(old), len(old), digest(new), len(new), 1))
    write_frame(file, Frame(0, len(old), len(new), 0), payload or encode(codec, old, new))
    return file.getvalue()


def offer_of(old: bytes, patch: bytes, codec: str = "bsdiff") -> Offer:
    return Offer(
        base=digest(old), base_size=len(old), codec=codec, patch=digest(patch), size=len(patch)
    )


def offers_of(old: bytes, new: bytes, patch: bytes) -> bytes:
    offers = Offers(target=digest(new), target_size=len(new), offers=(offer_of(old, patch),))
    return write_offers(offers)

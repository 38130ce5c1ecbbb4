"""Links under which a device may fetch the files of one model for a while. Serves no bytes.

A link is sealed with the fleet's secret and kept nowhere, so any worker can check it: it is for
one device, for the files of one model, and good for a quarter of an hour.
"""

import hmac
from collections.abc import Callable, Mapping
from functools import lru_cache

from edgepack.errors import IntegrityError
from edgepack.oci import read_oci_manifest
from edgepack.offers import Offers
from edgepack_fleet.refusal import RefusedError

__all__ = ["LINK_S", "Belongings", "Links"]

LINK_S = 900
_IMAGES = 64


class Links:
    """Makes links and checks them.

    Args:
        secret: The fleet's.
        clock: Unix seconds.
        belongs: Says whether a blob is one of an image's, both by SHA-256.
        blocked: Says whether a device is revoked.

    Attributes:
        url: Where the device listener is reached; empty as long as there is none.
    """

    def __init__(
        self,
        secret: bytes,
        clock: Callable[[], float],
        belongs: Callable[[str, str], bool],
        blocked: Callable[[str], bool],
    ) -> None:
        self._secret, self._clock = secret, clock
        self._belongs, self._blocked = belongs, blocked
        self.url = ""

    def link(self, device: str, image: str) -> str:
        """Return the link for DEVICE to the files of IMAGE, with `{sha256}` for the digest."""
        if not self.url:
            return ""
        until = int(self._clock()) + LINK_S
        seal = self._seal(device, image, until)
        query = f"device={device}&image={image}&until={until}&seal={seal}"
        return f"{self.url}/blobs/{{sha256}}?{query}"

    def check(self, sha256: str, query: Mapping[str, str]) -> None:
        """Check that a link with QUERY lets its holder have the blob SHA256.

        Raises:
            RefusedError: it is forged (`bad_link`), over (`link_expired`), of a revoked device
                (`revoked`), or for another model (`bad_link`).
        """
        device, image, seal = (query.get(name, "") for name in ("device", "image", "seal"))
        until = query.get("until", "")
        if not (until.isascii() and until.isdigit() and len(until) < 15):
            raise RefusedError("this is not a link of ours", reason="bad_link")
        if not hmac.compare_digest(seal.encode(), self._seal(device, image, int(until)).encode()):
            raise RefusedError("this is not a link of ours", reason="bad_link")
        if self._clock() >= int(until):
            raise RefusedError("the link is over", fix="ask for the job", reason="link_expired")
        if self._blocked(device):
            raise RefusedError("the device is revoked", reason="revoked")
        if not self._belongs(image, sha256):
            raise RefusedError("the link is for another model", reason="bad_link")

    def _seal(self, device: str, image: str, until: int) -> str:
        words = f"blobs {device} {image} {until}".encode()
        return hmac.new(self._secret, words, "sha256").hexdigest()


class Belongings:
    """Knows which blobs belong to an image: its files, patches to them, and all exams.

    Args:
        read: Returns a blob by its SHA-256.
        exams: Returns the SHA-256 of every exam.
        offers: Returns the patches that are offered to a blob, by SHA-256 and size.
    """

    def __init__(
        self,
        read: Callable[[str], bytes],
        exams: Callable[[], set[str]],
        offers: Callable[[str, int], Offers],
    ) -> None:
        self._image, self._exams, self._offers = read, exams, offers
        self._files = lru_cache(_IMAGES)(self._read)

    def __call__(self, image: str, sha256: str) -> bool:
        """Say whether the blob SHA256 belongs to IMAGE."""
        try:
            files = self._files(image)
        except (IntegrityError, FileNotFoundError):
            return False
        return (
            sha256 == image
            or sha256 in files
            or sha256 in self._exams()
            or any(self._patched(sha256, *file) for file in files.items())
        )

    def _read(self, image: str) -> dict[str, int]:
        return read_oci_manifest(self._image(image)).blobs()

    def _patched(self, patch: str, target: str, size: int) -> bool:
        return any(offer.patch == patch for offer in self._offers(target, size).offers)

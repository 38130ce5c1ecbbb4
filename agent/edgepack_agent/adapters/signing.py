"""Signs what must not be made up by others with this device's report key. Decides nothing."""

import time
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import ec

from edgepack.signed import SIGNED_KINDS, sign_report
from edgepack_agent.adapters.identity import Identity

__all__ = ["Signing"]


class Signing:
    """A way to say things that signs what the fleet checks.

    Args:
        identity: Whose report key; a device without one says everything as it is.
        say: Sends a payload about a kind; False: the link is down.
        wall: Unix seconds.
    """

    def __init__(
        self,
        identity: Identity,
        say: Callable[[str, bytes], bool],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._identity, self._say, self._wall = identity, say, wall
        self._key: ec.EllipticCurvePrivateKey | None = None

    def say(self, kind: str, payload: bytes) -> bool:
        """Send PAYLOAD about KIND, signed where the fleet wants it; return whether it went."""
        if kind in SIGNED_KINDS and (key := self._report_key()) is not None:
            payload = sign_report(self._identity.device, kind, payload, self._wall(), key)
        return self._say(kind, payload)

    def _report_key(self) -> ec.EllipticCurvePrivateKey | None:
        if self._key is None:  # there may be one by now
            self._key = self._identity.report_key()
        return self._key

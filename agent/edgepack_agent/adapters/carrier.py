"""What waits for the fleet, in a file that a person carries. Needs no link and confirms nothing.

The reports in it are signed like those on the wire, so nobody on the way can change one. The
fleet takes the file with `edgepack fleet devices import`.
"""

import os
import time
from typing import Any, cast

from edgepack.messages import Carried, Export, encode
from edgepack_agent.adapters.download import disk_errors
from edgepack_agent.adapters.identity import Identity
from edgepack_agent.adapters.reports import Reports
from edgepack_agent.adapters.signing import Signing

__all__ = ["write_export"]


def write_export(file: int, identity: Identity, reports: Reports, status: dict[str, Any]) -> int:
    """Write all that waits to the open descriptor FILE, durably; return how many messages.

    Raises:
        EdgepackError: the outbox or FILE cannot be used (reasons `storage`, `disk_full`).
    """
    found: list[Carried] = []

    def take(kind: str, payload: bytes) -> bool:
        found.append(Carried(kind=cast("Any", kind), payload=payload))
        return True

    reports.carry(Signing(identity, take).say)
    export = Export(device=identity.device, time=time.time(), status=status, messages=tuple(found))
    with disk_errors(), os.fdopen(os.dup(file), "wb") as out:
        out.write(encode(export))
        out.flush()
        os.fsync(out.fileno())
    return len(found)

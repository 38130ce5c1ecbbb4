"""Keeps what devices have measured, beside the request that they answer.

A number is worth more than the question that led to it, so it stays when the request is gone.
"""

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack.errors import EdgepackError
from edgepack_fleet.adapters.request_tables import MeasurementRow, RequestRow
from edgepack_targets.measure import Benchmark

__all__ = ["keep_measured"]

KEPT = 5
"""Measurements of one release that stay of one device."""


def keep_measured(session: Session, row: RequestRow, now: float) -> None:
    """Keep the measurement that ROW has been answered with; what is none makes it fail."""
    if row.kind != "measure" or row.status != "SUCCEEDED":
        return
    try:
        document = _checked(row)
    except EdgepackError as error:
        row.status, row.reason, row.message = "FAILED", error.reason, error.why
        return
    session.add(
        MeasurementRow(
            device_id=row.device_id,
            release=row.args["release"],
            target=row.args["target"]["path"],
            digest=document["digest"],
            received=now,
            verified=row.verified,
            document=row.result,
        )
    )
    session.flush()
    mine = select(MeasurementRow).where(
        MeasurementRow.device_id == row.device_id, MeasurementRow.release == row.args["release"]
    )
    for old in session.scalars(mine.order_by(MeasurementRow.id.desc()).offset(KEPT)):
        session.delete(old)


def _checked(row: RequestRow) -> Benchmark:
    """Return the document in ROW's answer, if it is of what was to be measured."""
    try:
        found = msgspec.convert(row.result, Benchmark)
    except msgspec.ValidationError as error:
        raise EdgepackError("no measurement", why=str(error), reason="bad_measurement") from error
    if found["digest"] != f"sha256:{row.args['target']['sha256']}":
        raise EdgepackError("another model", why=found["digest"], reason="bad_measurement")
    return found

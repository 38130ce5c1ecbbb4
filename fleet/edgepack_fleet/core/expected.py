"""Reads a list of devices that are known beforehand: CSV, a device a line. No I/O.

    id,fingerprint,group,tag.site,tag.pole
    cam-17,,berlin,hall,3
    ,9f2c...,berlin,gate,

The first line names the columns: `id` (or `serial`), `fingerprint`, `group`, and `tag.KEY` for
tags; an empty field is left out. The delimiter is a comma or a semicolon.
"""

import csv
import re
from collections.abc import Mapping
from typing import Any

from edgepack.errors import UsageError

__all__ = ["read_expected"]

COLUMNS = frozenset({"id", "fingerprint", "group"})
TAG = "tag."
FINGERPRINT = re.compile(r"[0-9a-f]{64}")
MOST = 10_000
"""Devices of a list."""


def read_expected(text: str, group: str | None = None) -> list[dict[str, Any]]:
    """Return the devices in TEXT as the REST interface takes them; GROUP is for who has none.

    Raises:
        UsageError: it is no such list; `why` names the line (`bad_list`).
    """
    lines = text.removeprefix("\ufeff").splitlines()
    header = lines[0] if lines else ""
    reader = csv.reader(lines, delimiter=";" if header.count(";") > header.count(",") else ",")
    try:
        names = [_column(name) for name in next(reader, [])]
        if len(set(names)) != len(names) or not {"id", "fingerprint"} & set(names):
            raise _bad(1, "it must name the columns, each once, with id or fingerprint among them")
        found = [
            _device(reader.line_num, _fields(reader.line_num, names, row), group)
            for row in reader
            if any(field.strip() for field in row)
        ]
    except csv.Error as error:
        raise _bad(reader.line_num, str(error)) from error
    if not found or len(found) > MOST:
        raise _bad(reader.line_num, f"a list has 1 to {MOST} devices; this one has {len(found)}")
    return found


def _column(name: str) -> str:
    name = name.strip()
    if name == "serial":
        return "id"
    if name not in COLUMNS and not (name.startswith(TAG) and name != TAG):
        known = "id, serial, fingerprint, group and tag.KEY"
        raise _bad(1, f"there is no column {name[:60]!r}; there are {known}")
    return name


def _fields(line: int, names: list[str], row: list[str]) -> dict[str, str]:
    if len(row) != len(names):
        raise _bad(line, f"it has {len(row)} fields, and there are {len(names)} columns")
    return {name: field.strip() for name, field in zip(names, row, strict=True)}


def _device(line: int, fields: Mapping[str, str], group: str | None) -> dict[str, Any]:
    fingerprint = fields.get("fingerprint", "").replace(":", "").lower()
    if fingerprint and not FINGERPRINT.fullmatch(fingerprint):
        raise _bad(line, "a fingerprint is 64 hexadecimal digits")
    name, where = fields.get("id", ""), fields.get("group") or group
    if not (name or fingerprint):
        raise _bad(line, "it has neither an id nor a fingerprint")
    if not where:
        raise _bad(line, "it has no group")
    tags = {k.removeprefix(TAG): v for k, v in fields.items() if k.startswith(TAG) and v}
    return {"id": name, "fingerprint": fingerprint, "group": where, "tags": tags}


def _bad(line: int, why: str) -> UsageError:
    return UsageError(
        "this is no list of devices",
        why=f"line {line}: {why}",
        fix="begin with a line like id,fingerprint,group,tag.site",
        reason="bad_list",
    )

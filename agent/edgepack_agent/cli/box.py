"""What is printed of all agents of this box."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from edgepack.cli import print_json
from edgepack_agent.box import Told, ask_status, refuse_silence

__all__ = ["print_rows", "show_box", "tell"]


def show_box(settings: Path, *, as_json: bool) -> None:
    """Print the status of every agent that is configured in SETTINGS.

    Raises:
        PartialError: some do not answer.
        EdgepackError: none does.
    """
    tell("edgepack.agent.status-all/v1", "status", ask_status(settings), _status, as_json=as_json)


def tell(
    schema: str,
    key: str,
    asked: Iterable[Told],
    row: Callable[[dict[str, Any]], tuple[str, ...]],
    *,
    as_json: bool,
) -> None:
    """Print what agents have answered, then raise if one has not.

    Args:
        schema: Of the JSON.
        key: What an answer is called there.
        asked: What came back.
        row: Makes the cells of an answer, after the instance's name.
        as_json: Print JSON instead of a table.

    Raises:
        PartialError: some have not answered.
        EdgepackError: none has.
    """
    told = list(asked)
    if as_json:
        print_json({"schema": schema, "instances": [_document(each, key) for each in told]})
    else:
        print_rows([(each.instance.name or "-", *_cells(each, row)) for each in told])
    refuse_silence(told)


def print_rows(rows: list[tuple[str, ...]]) -> None:
    """Print ROWS in columns."""
    columns = max(map(len, rows), default=0)
    widths = [max((len(r[n]) for r in rows if n < len(r)), default=0) for n in range(columns)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join(cells).rstrip())


def _document(told: Told, key: str) -> dict[str, Any]:
    error = told.error and {"reason": told.error.reason, "message": told.error.what}
    names = {"name": told.instance.name, "config": str(told.instance.config)}
    return names | {key: told.answer, "error": error}


def _cells(told: Told, row: Callable[[dict[str, Any]], tuple[str, ...]]) -> tuple[str, ...]:
    return row(told.answer) if told.answer else (told.error.what if told.error else "",)


def _status(found: dict[str, Any]) -> tuple[str, ...]:
    return (
        found["device"],
        "connected" if found["connected"] else "not connected",
        found["serving"] or "serves nothing",
        found["phase"],
        f"{found['rss_mb']} MB",
        found["api"]["socket"],
    )

"""How results look on a terminal: tables for people, documents for scripts. Asks nobody."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from edgepack.cli import print_json

__all__ = ["document", "facts", "moment", "plain", "printable", "table"]


def document(schema: str, content: Any) -> None:
    """Print CONTENT with its schema, `edgepack.SCHEMA/v1`."""
    print_json({"schema": f"edgepack.{schema}/v1"} | content)


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]], empty: str) -> None:
    """Print ROWS under HEADERS; EMPTY, on stderr, if there is none."""
    if not rows:
        click.echo(empty, err=True)
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    view = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for header in headers:
        view.add_column(header, overflow="fold")
    for row in rows:
        # A text is shown as it is; in a plain string `[...]` would be markup.
        view.add_row(*(Text(plain(value)) for value in row))
    console = Console()
    # Into a pipe goes every column in full; a terminal wraps.
    width = None if console.is_terminal else 10_000
    Console(width=width).print(view)


def facts(pairs: Sequence[tuple[str, Any]]) -> None:
    """Print names and values, one pair a line."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        click.echo(f"{name:<{width}}  {plain(value)}")


def moment(seconds: float | None) -> str:
    """Return SECONDS (Unix) as local date and time."""
    if seconds is None:
        return "never"
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def printable(text: str) -> str:
    """Return TEXT without what would steer a terminal."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def plain(value: Any) -> str:
    """Return VALUE without what would steer a terminal: much of it comes from devices."""
    return printable("-" if value is None or value == "" else str(value))

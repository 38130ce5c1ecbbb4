"""`edgepack doctor`: what can be built here, and how to get the rest. Changes nothing."""

import sys
from typing import TYPE_CHECKING

import click

from edgepack.cli import print_json

if TYPE_CHECKING:
    from edgepack_packager.core.documents import Doctor

__all__ = ["doctor"]

SIGNS = {
    "works": ("yes", "green"),
    "installable": ("after install", "yellow"),
    "missing": ("no runtime", "red"),
    "none": ("-", "dim"),
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def doctor(as_json: bool) -> None:
    """Show which sources can be built for which targets here, and what enables the rest.

    Looks at what is installed; loads no runtime and changes nothing. The exit code is 0: what
    is not there may not be wanted.

    \b
    Example:
        edgepack doctor
    """
    from edgepack_packager.adapters.surroundings import look_around
    from edgepack_packager.core.doctor import examine

    found = examine(look_around())
    if as_json:
        print_json(found)
    else:
        _print(found)


def _print(found: "Doctor") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    host = found["host"]
    console.print(
        f"edgepack {found['version']}, Python {found['python']}, "
        f"{host['cpu'] or host['machine']}, {host['cpus']} CPUs, {host['memory_mb']} MB"
    )
    console.print()
    targets = list(found["runtimes"])
    table = Table("source", *targets, box=None, pad_edge=False)
    for source in dict.fromkeys(route["source"] for route in found["routes"]):
        states = [r["state"] for r in found["routes"] if r["source"] == source]
        table.add_row(source, *(Text(*SIGNS[state]) for state in states))
    console.print(table)
    console.print()
    for name, version in found["runtimes"].items():
        style = "" if version else "red"
        console.print(Text(f"runtime    {name:<12} {version or 'not installed'}", style=style))
    for toolchain in found["toolchains"]:
        state = "installed" if toolchain["python"] else "not installed"
        told = f"toolchain  {toolchain['name']:<12} {state:<14} {toolchain.get('purpose', '')}"
        console.print(Text(told))
    for check in found["checks"]:
        style = "" if check["ok"] else "yellow"
        console.print(Text(f"{check['name']:<10} {check['told']}", style=style))
    if found["fixes"]:
        console.print("\nto get the rest:")
        for fix in found["fixes"]:
            console.print(Text(f"  {fix}", style="bold"))

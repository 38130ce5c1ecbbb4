"""`edgepack toolchain`: install and list conversion environments. Converts nothing."""

from typing import Any

import click

from edgepack.cli import print_json

__all__ = ["toolchain"]


@click.group()
def toolchain() -> None:
    """Install and list conversion toolchains."""


@toolchain.command("install")
@click.argument("names", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Install every toolchain.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def install_command(names: tuple[str, ...], every: bool, as_json: bool) -> None:
    """Install the toolchains NAMES, as pinned; those already there are left alone.

    \b
    Example:
        edgepack toolchain install tf torch
    """
    if bool(names) == every:
        raise click.UsageError("give the names of toolchains, or --all")
    from edgepack_packager.adapters import toolchains
    from edgepack_packager.cli.receipt import progress

    rows = []
    for chosen in [toolchains.find_toolchain(n) for n in names or toolchains.TOOLCHAINS]:
        with progress() as (report, _):
            where, fresh = toolchains.install(chosen, lambda text: report(text, 0, 0))
        rows.append({"name": chosen.name, "python": str(where.python), "installed_now": fresh})
        told = "installed" if fresh else "already installed"
        click.echo(f"{chosen.name}: {told} ({where.python})", err=True)
    if as_json:
        print_json({"schema": "edgepack.toolchains/v1", "toolchains": rows})


@toolchain.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def list_command(as_json: bool) -> None:
    """List the toolchains: whether they are installed, how big, and what they are for.

    \b
    Example:
        edgepack toolchain list
    """
    from edgepack_packager.adapters import toolchains

    rows: list[dict[str, Any]] = []
    for known in toolchains.TOOLCHAINS.values():
        where = toolchains.interpreter(known)
        rows.append(
            {
                "name": known.name,
                "purpose": known.purpose,
                "installed": where is not None,
                "size_bytes": toolchains.size_bytes(known),
                "python": str(where.python) if where else None,
                "pins": list(known.pins),
            }
        )
    if as_json:
        print_json({"schema": "edgepack.toolchains/v1", "toolchains": rows})
        return
    for row in rows:
        state = "installed" if row["installed"] else "missing"
        size = f"{row['size_bytes'] / 1e9:.1f} GB" if row["size_bytes"] else ""
        click.echo(f"{row['name']:<10} {state:<10} {size:>7}  {row['purpose']}")

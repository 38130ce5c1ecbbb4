"""`edgepack toolchain`: install and list conversion environments. Converts nothing."""

import click

from edgepack.cli import print_json

__all__ = ["toolchain"]


@click.group()
def toolchain() -> None:
    """Install and list conversion toolchains."""


@toolchain.command("install")
@click.argument("names", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def install_command(names: tuple[str, ...], as_json: bool) -> None:
    """Install the toolchains NAMES, as pinned; those already there are left alone.

    \b
    Example:
        edgepack toolchain install tf
    """
    from edgepack_packager.adapters import toolchains
    from edgepack_packager.cli.receipt import progress

    rows = []
    for chosen in [toolchains.find_toolchain(name) for name in names]:
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
    """List the toolchains, what they are for and whether they are installed."""
    from edgepack_packager.adapters import toolchains

    rows = []
    for known in toolchains.TOOLCHAINS.values():
        where = toolchains.interpreter(known)
        rows.append(
            {
                "name": known.name,
                "purpose": known.purpose,
                "installed": where is not None,
                "python": str(where.python) if where else None,
                "pins": list(known.pins),
            }
        )
    if as_json:
        print_json({"schema": "edgepack.toolchains/v1", "toolchains": rows})
        return
    for row in rows:
        state = "installed" if row["installed"] else "missing"
        click.echo(f"{row['name']:<10} {state:<10} {row['purpose']}")

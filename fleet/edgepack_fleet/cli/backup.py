"""`edgepack fleet backup|restore`: a fleet in one file. Talks to no running fleet."""

from pathlib import Path

import click
import msgspec

from edgepack.errors import UsageError
from edgepack_fleet.cli import show
from edgepack_fleet.cli.serve import data_option, database_option

__all__ = ["backup", "restore"]


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@data_option
@database_option
@click.option("--without-content", is_flag=True, help="Leave models out; keep them otherwise.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def backup(
    file: Path, data: Path, database: str | None, without_content: bool, as_json: bool
) -> None:
    """Write the fleet into FILE; it may go on serving. FILE holds all its keys."""
    from edgepack_fleet.adapters.database import Database
    from edgepack_fleet.backup import take

    if not database and not (data / "fleet.db").exists():
        raise UsageError(
            f"there is no database in {data}",
            why="the fleet has another one, or has never been served from there",
            fix="give the --database that it is served with",
            reason="no_fleet",
        )
    found = Database(database) if database else Database.in_directory(data)
    try:
        facts = take(data, found, file, content=not without_content)
    finally:
        found.close()
    _say(file, facts, "written to", as_json=as_json)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@data_option
@database_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def restore(file: Path, data: Path, database: str | None, as_json: bool) -> None:
    """Make a fleet of the backup in FILE; --data and --database must be empty."""
    from edgepack_fleet.backup import restore as put_back

    _say(data, put_back(file, data, database), "restored to", as_json=as_json)


def _say(path: Path, facts: msgspec.Struct, what: str, *, as_json: bool) -> None:
    told = msgspec.to_builtins(facts)
    told.pop("schema")
    if as_json:
        show.document("backup", {"path": str(path), **told})
    else:
        moment = show.moment(told["created"])
        click.echo(f"{told['rows']} rows and {told['files']} files of {moment} {what} {path}")
        if not told["content"]:
            click.echo("Models are not in it: keep what --content names, and serve with it again.")

"""`edgepack-agent drift`: is what the model sees and says still what it was built for?"""

from pathlib import Path
from typing import Any

import click

from edgepack.cli import print_json
from edgepack.durable import write_file
from edgepack.errors import UsageError
from edgepack_agent.adapters.control import call
from edgepack_agent.settings import load_config

__all__ = ["drift"]


@click.command()
@click.option(
    "--svg",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for a picture of each feature.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_obj
def drift(config: Path | None, svg: Path | None, as_json: bool) -> None:
    """Compare what the model saw and said of late with what it was built for.

    Compared are whole windows (`drift:` in the configuration): until the first is full, there is
    nothing to show but how far it is. A feature drifts when several windows in a row are far from
    the baseline. Works without a link.

    \b
    Example:
        edgepack-agent drift --svg pictures/
    """
    found = call(load_config(config).control_socket, "drift", timeout_s=15)
    if svg:
        found["pictures"] = [str(path) for path in _draw(found, svg)]
    if as_json:
        print_json(found)
        return
    for name, facts in sorted(found["features"].items()):
        click.echo(f"{name:<32} {_sentence(name, facts, found)}")
    click.echo(_progress(found))


def _draw(found: dict[str, Any], folder: Path) -> list[Path]:
    from edgepack_targets.pipeline.drift_chart import drift_chart

    paths = []
    for name, pair in sorted(found["histograms"].items()):
        told = _sentence(name, found["features"][name], found)
        chart = drift_chart(name, told, pair["names"], pair["baseline"], pair["window"])
        path = folder / f"{name.replace('/', '_')}.svg"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_file(path, chart.encode(), 0o644)
        except OSError as error:
            raise UsageError(f"{path} cannot be written", why=str(error)) from error
        paths.append(path)
    return paths


def _sentence(name: str, facts: dict[str, Any], found: dict[str, Any]) -> str:
    numbers = f"PSI {facts['psi']:.3f}, p {facts['p']:.2g}, n {facts['n']}"
    return f"{_verdict(name, facts, found)}: {numbers}"


def _verdict(name: str, facts: dict[str, Any], found: dict[str, Any]) -> str:
    if name in found["alarms"]:
        return "drifts"
    if facts["far"]:
        row = f"{facts['far']} of {found['windows']} windows in a row"
        return f"far from what it was built with, {row}"
    return "as built"


def _progress(found: dict[str, Any]) -> str:
    """Return how far the window is that is being filled, and what to do if it is the first."""
    if not found["watched"]:
        return "nothing is watched: no model answers, its bundle has no baseline, or `watch: false`"
    window = found["window"]
    so_far = (
        f"{window['values']} of {window['min_count']} values, "
        f"{window['lasted_s']} of {window['min_s']:g} s"
    )
    if found["features"]:
        return f"the next window has {so_far}"
    return (
        f"no window is full yet, so there is nothing to compare or draw: {so_far}\n"
        "ask again when both are reached; `drift: {min_count: ..., min_s: ...}` in the "
        "configuration makes windows smaller"
    )

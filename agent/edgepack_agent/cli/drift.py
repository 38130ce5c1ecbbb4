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
    nothing to show. Works without a link.

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
    if not found["features"]:
        click.echo(_nothing_yet(found["filling"]))
    for name, facts in sorted(found["features"].items()):
        click.echo(f"{name:<32} {_sentence(name, facts, found)}")


def _nothing_yet(filling: dict[str, Any] | None) -> str:
    """Return why there is nothing to compare, and how far the first window is."""
    if filling is None:
        return (
            "nothing is watched: no model runs, its bundle has no baseline, or `drift.watch` is off"
        )
    values = f"{filling['values']:,} of {filling['of_values']:,} values"
    minutes = f"{filling['seconds'] // 60} of {filling['of_seconds'] / 60:g} minutes"
    return f"no window is full yet: {values}, {minutes}; both are needed"


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
    verdict = "as built"
    if name in found["alarms"]:
        verdict = "drifts"
    elif facts["far"]:
        verdict = f"far from as built, {facts['far']} of {found['windows']} windows in a row"
    return f"{verdict}: PSI {facts['psi']:.3f}, p {facts['p']:.2g}, n {facts['n']}"

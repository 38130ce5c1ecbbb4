"""`edgepack demo`: the main job, end to end, on this machine."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click

from edgepack.cli import print_json

__all__ = ["demo"]


@click.command()
@click.option("--keep", is_flag=True, help="Leave fleet and agents running and print the URL.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Where to work; default: a temporary directory."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def demo(keep: bool, data: Path | None, as_json: bool) -> None:
    """Train, build, roll out, infer offline, stop a bad version: on real parts, in minutes.

    \b
    Example:
        edgepack demo
        edgepack demo --keep        # and look at the web page afterwards
    """
    from edgepack_packager.demo.processes import Processes
    from edgepack_packager.demo.story import Story, environment

    home = (data or Path(tempfile.mkdtemp(prefix="edgepack-demo-"))).resolve()
    env = environment(home)
    began = time.monotonic()
    # The operator's token is in `env` only: broker, fleet and agents never see it.
    with _logs_on_failure(home), Processes(home / "logs", environment(home)) as processes:
        story = Story(home, processes, env, lambda line: _tell(line, time.monotonic() - began))
        with closing(story):
            story.run()
            document = story.document()
            if keep:
                story.settle()
                _say_how_to_stop(story.url, env["EDGEPACK_FLEET_TOKEN"], home, processes.pids())
                processes.leave_running()
    if not keep and data is None:
        shutil.rmtree(home)
    print_json(document) if as_json else _print_table(document)


@contextmanager
def _logs_on_failure(home: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        click.echo(f"logs: {home / 'logs'}", err=True)
        raise


def _tell(line: str, seconds: float) -> None:
    click.echo(f"[{seconds:5.1f} s] {line}", err=True)


def _say_how_to_stop(url: str, token: str, home: Path, pids: list[int]) -> None:
    click.echo(f"fleet:  {url}", err=True)
    click.echo(f"token:  {token}", err=True)
    click.echo(f"files:  {home}", err=True)
    click.echo(f"stop:   kill {' '.join(map(str, pids))}", err=True)


def _print_table(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    devices = Table("device", "target", "runs", "inferences", "accuracy", title="Devices")
    for d in document["devices"]:
        row = [d["id"], d["target"], d["bundle"], str(d["inferences"]), f"{d['accuracy']:.1%}"]
        devices.add_row(*row)
    rollouts = Table("release", "state", "reason", title="Rollouts")
    for r in document["rollouts"]:
        rollouts.add_row(r["release"], r["state"], r["reason"] or "")
    console = Console()
    console.print(devices)
    console.print(rollouts)
    console.print(f"{document['offline_inferences']} inferences with the network cable pulled")

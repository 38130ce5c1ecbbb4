"""`edgepack-agent privacy`: what leaves this device, and to whom."""

import json
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click
import msgspec

from edgepack.cli import print_json
from edgepack_agent.settings import read_config

if TYPE_CHECKING:
    from edgepack_agent.core.privacy import Privacy

__all__ = ["privacy"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_obj
def privacy(config: Path | None, as_json: bool) -> None:
    """Say exactly what leaves this device at its level of telemetry, and to whom.

    Names every topic and every key, for the fleet and for the broker of `events`. The example is
    made by the code that makes the real rows. Needs no running agent.

    \b
    Example:
        edgepack-agent privacy
    """
    found = _read(config)
    if as_json:
        print_json(msgspec.to_builtins(found))
        return
    click.echo(
        f"telemetry is `{found.level}`; it goes to "
        f"{found.to or 'nobody: this device is not enrolled'}"
    )
    _echo(found.leaves, found.keys)
    click.echo(f"\nsigned messages also have {', '.join(found.signed)}")
    site = found.events
    click.echo(f"\nthe site's broker (`events`): {site.to or 'none is told'}")
    _echo(site.leaves, site.keys)
    click.echo("\nnever\n  " + "\n  ".join(found.never))
    if found.example:
        click.echo(f"\na row of telemetry\n{json.dumps(found.example, indent=2)}")


def _read(config: Path | None) -> "Privacy":
    from edgepack_agent.adapters.identity import load_identity
    from edgepack_agent.config import address
    from edgepack_agent.core.announcement import Names, Sights
    from edgepack_agent.core.privacy import Privacy, example, fleet, never, signed, site
    from edgepack_agent.steering import Steering

    read, files = read_config(config)
    settings = Steering(read, {path for path, _ in files.layer.leaves()}).config
    level, identity = settings.telemetry.level, load_identity(settings.identity_dir)
    broker = address(settings.broker) if settings.broker else identity and identity.broker
    told = fleet(level, f"{broker[0]}:{broker[1]}" if identity and broker else None)
    events = settings.events
    names = Names(identity.device if identity else "DEVICE", events.prefix, events.discovery_prefix)
    sights = Sights(settings.sightings.labels, settings.snapshots.publish)
    cameras = [source.name for source in settings.sources]
    return Privacy(
        level=level,
        to=told.to,
        leaves=told.leaves,
        keys=told.keys,
        signed=signed(),
        events=site(names, cameras, _plain(events.broker), sights),
        never=never(),
        example=example(level),
    )


def _plain(broker: str | None) -> str | None:
    """Return the address of BROKER without what else may stand in it."""
    if broker is None:
        return None
    parts = urlsplit(broker)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def _echo(leaves: dict[str, str], keys: dict[str, tuple[str, ...]]) -> None:
    for topic, told in leaves.items():
        click.echo(f"\n{topic}\n  {told}")
        if keys.get(topic):
            click.echo(click.wrap_text(", ".join(keys[topic]), 96, "    ", "    "))

"""`edgepack-agent models`: which models this box serves, and where each is asked."""

from pathlib import Path
from typing import Any

import click

from edgepack_agent.box import ask_models
from edgepack_agent.cli.box import tell
from edgepack_agent.cli.instance import settings_dir

__all__ = ["models"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_obj
def models(config: Path | None, as_json: bool) -> None:
    """List the models of this box, of every agent, and the sockets on which they answer.

    For programs that use the inference API: whoever may ask a model may list it.

    \b
    Example:
        edgepack-agent models
    """
    asked = ask_models(settings_dir(config))
    tell("edgepack.agent.models/v1", "model", asked, _row, as_json=as_json)


def _row(found: dict[str, Any]) -> tuple[str, ...]:
    places = f"unix:{found['socket']}"
    places += f" http://{found['listen']}" if found["listen"] else ""
    return f"{found['name']}@{found['version']}", found["state"].lower(), places

"""All agents of this box: what they do, and which models they serve. Changes nothing.

What an agent does, its control socket tells root and its own user. Which model it serves, its
inference API tells everybody who may ask it.
"""

import http.client
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.errors import EdgepackError, PartialError, UnreachableError
from edgepack_agent.adapters.control import call
from edgepack_agent.adapters.instances import Instance, find_instances
from edgepack_agent.settings import load_config

__all__ = ["Told", "ask_models", "ask_status", "refuse_silence"]

STATUS_S = 15.0
MODELS_S = 3.0
MAX_INDEX = 64 * 1024


@dataclass(frozen=True, slots=True)
class Told:
    """What an agent has answered; `error` says why it has not."""

    instance: Instance
    answer: dict[str, Any] | None = None
    error: EdgepackError | None = None


def ask_status(settings: Path) -> Iterator[Told]:
    """Yield the status of every agent that is configured in SETTINGS.

    Raises:
        UsageError: SETTINGS cannot be read.
    """
    for each in find_instances(settings):
        try:
            control = load_config(each.config).control_socket
            yield Told(each, call(control, "status", timeout_s=STATUS_S))
        except EdgepackError as error:
            yield Told(each, error=error)


def ask_models(settings: Path) -> Iterator[Told]:
    """Yield the model of every agent that is configured in SETTINGS, and where it is asked.

    Raises:
        UsageError: SETTINGS cannot be read.
    """
    for each in find_instances(settings):
        try:
            config = load_config(each.config)
            places = {"socket": str(config.api_socket), "listen": config.listen}
            yield Told(each, _index(config.api_socket) | places)
        except EdgepackError as error:
            yield Told(each, error=error)


def refuse_silence(told: list[Told]) -> None:
    """Raise if some of those who were asked have not answered.

    Raises:
        PartialError: some have.
        EdgepackError: none has: the first one's reason.
    """
    errors = [each.error for each in told if each.error]
    if errors and len(errors) == len(told):
        raise errors[0]
    if errors:
        raise PartialError(
            f"{len(errors)} of {len(told)} agents of this box do not answer",
            why="; ".join(sorted({f"{error.what}: {error.why}" for error in errors})),
            fix="edgepack-agent --instance NAME doctor",
            reason="agent_unreachable",
        )


def _index(path: Path) -> dict[str, Any]:
    """Return the one entry of the repository index of whoever serves on the socket PATH."""
    try:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(MODELS_S)
            peer.connect(str(path))
            asked = http.client.HTTPConnection("localhost")
            asked.sock = peer
            asked.request("POST", "/v2/repository/index")
            entry: dict[str, Any] = json.loads(asked.getresponse().read(MAX_INDEX))[0]
            return {key: entry.get(key) for key in ("name", "version", "state")}
    except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
        raise UnreachableError(
            "no model answers", why=f"{path}: {error}",
            fix="edgepack-agent status", reason="model_unreachable",
        ) from error  # fmt: skip

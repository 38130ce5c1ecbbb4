"""Start of the runner process: `python -m edgepack_agent.runner`, by the supervisor alone.

Everything it needs is inherited: an open control channel, listening sockets, a slot's path.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import click

from edgepack_agent.adapters import logs
from edgepack_agent.runner import kernel
from edgepack_agent.runner.driver import Driver, Options
from edgepack_agent.runner.interface import Model
from edgepack_agent.runner.model import LoadedModel
from edgepack_agent.runner.slot import open_slot
from edgepack_agent.runner.statistics import Statistics


@click.command()
@click.option("--control-fd", type=int, required=True)
@click.option("--slot", type=click.Path(path_type=Path), required=True)
@click.option("--listen-fd", type=int, multiple=True)
@click.option("--threads", type=int)
@click.option("--state", type=click.Path(path_type=Path))
def main(
    control_fd: int, slot: Path, listen_fd: tuple[int, ...], threads: int | None, state: Path | None
) -> None:
    """Serve SLOT as the control channel says."""
    kernel.die_with_parent()
    kernel.give_up_rights()
    kernel.be_killed_first()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor to judge
    logs.begin("warning", "edgepack-runner", plain="runner: %(levelname)s: %(message)s")

    def load(statistics: Statistics, progressed: Callable[[], None]) -> Model:
        return LoadedModel(open_slot(slot), threads, statistics, progressed)

    listeners = tuple(socket.socket(fileno=fd) for fd in listen_fd)
    options = Options(socket.socket(fileno=control_fd), listeners, load, state)
    asyncio.run(_drive(options))


async def _drive(options: Options) -> None:
    code = await Driver(options).run()
    # A hung inference thread would keep an ordinary exit waiting, and runtimes are known to
    # crash while the interpreter takes itself apart.
    os._exit(code)


main()

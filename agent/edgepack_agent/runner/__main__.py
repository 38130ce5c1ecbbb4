"""Start of the runner process: `python -m edgepack_agent.runner`, by the supervisor alone.

Everything it needs is inherited: an open control channel, listening sockets, a slot's path.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack_agent.adapters import logs
from edgepack_agent.runner import kernel, landlock
from edgepack_agent.runner.places import marks, moved, places
from edgepack_agent.runner.setup import Setup, read_setup

if TYPE_CHECKING:
    from edgepack_agent.runner.driver import Options
    from edgepack_agent.runner.interface import Load

log = logging.getLogger(__name__)


@click.command()
@click.option("--control-fd", type=int, required=True)
@click.option("--slot", type=click.Path(path_type=Path), required=True)
@click.option("--listen-fd", type=int, multiple=True)
@click.option("--setup", default="{}")
def main(control_fd: int, slot: Path, listen_fd: tuple[int, ...], setup: str) -> None:
    """Serve SLOT as the control channel says."""
    kernel.die_with_parent()
    kernel.give_up_rights()
    kernel.be_killed_first()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor to judge
    logs.begin("warning", "edgepack-runner", plain="runner: %(levelname)s: %(message)s")
    given = read_setup(setup)
    before = marks(given.sources)
    confined = _confine(slot, given)

    # Not sooner: numpy and runtimes start threads when they are imported, and those would be free.
    from edgepack_agent.runner.driver import Options

    listeners = tuple(socket.socket(fileno=fd) for fd in listen_fd)
    options = Options(
        socket.socket(fileno=control_fd),
        listeners,
        _load(slot, given),
        Path(given.results) if given.results else None,
        confined,
        given.heat,
        (lambda: moved(before)) if confined else list,
    )
    asyncio.run(_drive(options))


def _confine(slot: Path, setup: Setup) -> bool:
    """Shut this process in; say whether that is so. Without, it goes on: `status` tells."""
    for own in filter(None, (setup.results, setup.album, setup.scratch)):
        with contextlib.suppress(OSError):
            Path(own).mkdir(parents=True, exist_ok=True)
    if setup.scratch:
        os.environ["TMPDIR"] = setup.scratch
    try:
        return landlock.confine(places(slot, setup)) > 0
    except OSError as error:
        log.warning("the runner is not confined: %s", error)
        return False


def _load(slot: Path, setup: Setup) -> "Load":
    from edgepack_agent.runner.interface import Model
    from edgepack_agent.runner.model import LoadedModel
    from edgepack_agent.runner.slot import open_slot
    from edgepack_agent.runner.statistics import Statistics

    def load(statistics: Statistics, progressed: Callable[[], None]) -> Model:
        return LoadedModel(open_slot(slot), setup, statistics, progressed)

    return load


async def _drive(options: "Options") -> None:
    from edgepack_agent.runner.driver import Driver

    code = await Driver(options).run()
    # A hung inference thread would keep an ordinary exit waiting, and runtimes are known to
    # crash while the interpreter takes itself apart.
    os._exit(code)


main()

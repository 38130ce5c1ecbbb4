"""The agent itself, `python -m edgepack_agent --config-fd N`, until SIGTERM.

`edgepack-agent run` turns into this once it has read the settings, so that neither the command
line nor YAML stays in the memory of a device for as long as it runs.
"""

import os
import signal
import sys
from pathlib import Path

import msgspec

from edgepack.errors import EdgepackError
from edgepack.redact import redact
from edgepack_agent.adapters import logs
from edgepack_agent.adapters.memory import one_arena
from edgepack_agent.config import Launch, as_path

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Run until told to stop; return the exit code."""
    with os.fdopen(int(arguments[1]), "rb") as file:
        launch = msgspec.json.decode(file.read(), type=Launch, dec_hook=as_path)
    try:
        _supervise(launch)
    except EdgepackError as error:
        print(redact(error.diagnostics()), file=sys.stderr)
        return error.exit_code
    return 0


def _supervise(launch: Launch) -> None:
    from edgepack_agent.parts import assemble
    from edgepack_agent.supervisor import Supervisor

    about = logs.begin(launch.config.log_level, "edgepack-agent")
    one_arena()
    parts = assemble(launch.config, Path(launch.file) if launch.file else None, launch.said)
    supervisor = Supervisor(parts)
    about(lambda: logs.fields(parts.identity.device, supervisor.state))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop())
    supervisor.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Root of the `edgepack` command. Knows no subcommand: they are entry points, loaded when called.

`edgepack --help` lists them from the installed metadata, so that it starts without importing
a runtime or a web framework. Catches `EdgepackError` once, for every command below it.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any

import click

from edgepack.errors import EdgepackError, UnsupportedError
from edgepack.redact import redact

__all__ = ["FiniteRange", "LazyGroup", "TableGroup", "main", "print_json", "root", "run_command"]

GROUP = "edgepack.commands"
SHORT_HELP = {
    "build": "Compress, convert, prove and sign a model.",
    "inspect": "Show what a bundle says about itself.",
    "verify": "Check a bundle's form, digests and signature.",
    "unpack": "Write a bundle's files as they were signed.",
    "run": "Run a bundle on the host.",
    "benchmark": "Measure load time, latency, throughput and memory.",
    "compare": "Put two bundles side by side.",
    "keys": "Create publisher keys.",
    "toolchain": "Install and list conversion toolchains.",
    "doctor": "Say what can be built here, and how to get the rest.",
    "repo": "Keep the signed repository that devices trust.",
    "fleet": "Devices, groups, releases and rollouts.",
    "simulate": "Simulate thousands of devices, to rehearse a rollout.",
    "demo": "The whole story on this machine, on real parts.",
}
EXTRA = {"fleet": "fleet", "simulate": "fleet"}


class FiniteRange(click.FloatRange):
    """A number within limits; unlike click's own, never NaN, which passes every comparison."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return VALUE as a number, or fail."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class LazyGroup(click.Group):
    """A group whose commands are entry points, imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the installed subcommands, in the order of the story."""
        names = {entry.name for entry in entry_points(group=GROUP)}
        return [*(n for n in SHORT_HELP if n in names), *sorted(names - SHORT_HELP.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command CMD_NAME, importing it; None if there is none."""
        found = next(iter(entry_points(group=GROUP, name=cmd_name)), None)
        return _load(found) if found else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        rows = [(name, SHORT_HELP.get(name, "")) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class TableGroup(click.Group):
    """A group whose commands stand in a table, imported when called.

    Args:
        args: As click's.
        table: Command to the module that holds a command of that name, and a line of help.
        attrs: As click's.
    """

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], **attrs: Any) -> None:
        super().__init__(*args, **attrs)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command CMD_NAME, importing it; None if there is none."""
        if cmd_name not in self.table:
            return None
        module = import_module(self.table[cmd_name][0])
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])


def _load(entry: EntryPoint) -> click.Command:
    try:
        command: click.Command = entry.load()
    except ModuleNotFoundError as error:
        extra = EXTRA.get(entry.name, "packager")
        raise UnsupportedError(
            f"`edgepack {entry.name}` is not installed here",
            why=f"the module {error.name} is missing",
            fix=f'pip install "edgepack[{extra}]"',
            reason="extra_missing",
        ) from error
    return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("edgepack"), prog_name="edgepack")
def root() -> None:
    """Take a trained model to a fleet of edge devices, and keep it right there."""


def print_json(document: Any) -> None:
    """Print DOCUMENT, the result of a command, on stdout."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def run_command(command: click.Command, args: Sequence[str] | None = None) -> None:
    """Run COMMAND and leave the process with the exit code of what happened."""
    try:
        command.main(args=args, standalone_mode=False)
    except EdgepackError as error:
        click.echo(redact(error.diagnostics()), err=True)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)


def main() -> None:
    """Run `edgepack`."""
    run_command(root)

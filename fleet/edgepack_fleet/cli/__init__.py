"""`edgepack fleet`: names of commands and where they are. Imports none until it is called."""

from importlib import import_module

import click

__all__ = ["fleet"]

COMMANDS = {
    "serve": ("serve", "Serve the fleet: REST, pages, enrolment, devices."),
    "broker": ("serve", "Run mosquitto with the fleet's configuration."),
    "devices": ("devices", "List and show devices."),
    "groups": ("devices", "List, create and show groups."),
    "releases": ("rollouts", "List and show published releases."),
    "rollouts": ("rollouts", "Send a release to a group, wave by wave."),
    "tokens": ("tokens", "Let devices enrol, and people log in."),
    "openapi": ("serve", "Print the description of the REST interface."),
}


class _Lazy(click.Group):
    """A group that imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order they are needed."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command CMD_NAME, importing it; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"edgepack_fleet.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Lazy)
def fleet() -> None:
    """Devices, groups, releases and rollouts."""

"""`edgepack fleet`: names of commands and where they are. Imports none until it is called."""

import click

from edgepack.cli import TableGroup

__all__ = ["fleet"]

COMMANDS = {
    "up": ("edgepack_fleet.cli.up", "Broker and fleet in one command, watched over."),
    "serve": ("edgepack_fleet.cli.serve", "Serve the fleet: REST, pages, enrolment, devices."),
    "broker": ("edgepack_fleet.cli.serve", "Run mosquitto with the fleet's configuration."),
    "health": ("edgepack_fleet.cli.health", "Say whether fleet and broker of this machine work."),
    "service": ("edgepack_fleet.cli.service", "Units for systemd: broker and fleet."),
    "backup": ("edgepack_fleet.cli.backup", "Write the fleet into a file while it serves."),
    "restore": ("edgepack_fleet.cli.backup", "Make a fleet of such a file."),
    "config": ("edgepack_fleet.cli.steering", "Set keys of the agents' configuration."),
    "devices": ("edgepack_fleet.cli.devices", "List, describe, admit, ask and revoke devices."),
    "alerts": ("edgepack_fleet.cli.alerts", "Say what is wrong, and who looks after it."),
    "access": ("edgepack_fleet.cli.access", "Create and revoke access tokens."),
    "audit": ("edgepack_fleet.cli.access", "Read who changed what."),
    "ca": ("edgepack_fleet.cli.authorities", "Replace the certificate authority."),
    "groups": ("edgepack_fleet.cli.groups", "Make groups: lists of devices, or filters."),
    "releases": ("edgepack_fleet.cli.rollouts", "List published releases, measure, compare them."),
    "rollouts": ("edgepack_fleet.cli.rollouts", "Send a release to a group, wave by wave."),
    "tokens": ("edgepack_fleet.cli.tokens", "Let devices enrol, and people log in."),
    "webhooks": ("edgepack_fleet.cli.webhooks", "Post changes to a URL."),
    "openapi": ("edgepack_fleet.cli.serve", "Print the description of the REST interface."),
}


@click.group(cls=TableGroup, table=COMMANDS)
def fleet() -> None:
    """Devices, groups, releases and rollouts."""

"""`edgepack-agent doctor`: what is wrong with this device, and what to do about it."""

import sys
from datetime import UTC, datetime

import click

from edgepack.cli import print_json
from edgepack.redact import redact
from edgepack_agent.cli.instance import instance_name
from edgepack_agent.core.doctor import Finding, exit_code, worst

__all__ = ["doctor"]

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check everything this device needs and say what to do about what is wrong.

    Changes nothing, with or without a running agent; what only root may look at is said to be
    unknown. The exit code is 0 unless something fails, else that of the first failure.

    \b
    Example:
        sudo edgepack-agent doctor
    """
    from edgepack_agent.checkup import examine

    findings = []
    for finding in examine(ctx.obj, datetime.now(UTC), instance_name()):
        findings.append(finding)
        if not as_json:
            _print(finding)
    if as_json:
        document = {"schema": "edgepack.agent.doctor/v1", "status": worst(findings)}
        print_json(document | {"findings": [_row(each) for each in findings]})
    # Not through click, which returns the code instead of leaving with it.
    sys.exit(exit_code(findings))


def _print(finding: Finding) -> None:
    status = click.style(f"{finding.status:<4}", fg=_COLOURS[finding.status])
    click.echo(f"{status}  {finding.check:<12} {redact(finding.what)}")
    for name, text in (("why", finding.why), ("fix", finding.fix)):
        if text:
            click.echo(f"{'':<19}{name}: {redact(text)}")


def _row(finding: Finding) -> dict[str, object]:
    """Return every field of FINDING, whether there is something in it or not."""
    row = {name: getattr(finding, name) for name in finding.__struct_fields__}
    return {name: redact(v) if isinstance(v, str) else v for name, v in row.items()}

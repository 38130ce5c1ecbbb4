"""`edgepack fleet alerts`: what is wrong, and who looks after it."""

from pathlib import Path

import click

from edgepack.cli import FiniteRange
from edgepack_fleet.cli import show
from edgepack_fleet.cli.client import Client, connection_options

__all__ = ["alerts"]


@click.group()
def alerts() -> None:
    """Say what is wrong, and who looks after it."""


@alerts.command("list")
@click.option("--state", type=click.Choice(["pending", "firing", "resolved"]), help="Only these.")
@connection_options
def list_alerts(
    state: str | None, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """List alerts that are pending, fire, or have ended within the hour."""
    client = Client(url, token, data)
    found = {"alerts": list(client.items("alerts", state=state))}
    if as_json:
        show.document("alerts", found)
        return
    rows = [
        (a["id"], a["severity"], a["rule"], ", ".join(a["labels"].values()),
         f"{a['state']}: {a['reason']}" if a["reason"] else a["state"],
         show.moment(a["since"]), a["reading"], a["acknowledged_by"])
        for a in found["alerts"]
    ]  # fmt: skip
    headers = ("alert", "severity", "rule", "about", "state", "since", "value", "taken up by")
    show.table(headers, rows, "Nothing is wrong.")


@alerts.command("rules")
@connection_options
def list_rules(url: str | None, token: str | None, data: Path | None, as_json: bool) -> None:
    """List what is watched."""
    found = Client(url, token, data).get("alert-rules")
    if as_json:
        show.document("alert-rules", {"rules": found["items"]})
        return
    rows = [
        (r["name"], r["severity"], f"{r['metric']} {r['op']} {r['limit']:g}", f"{r['clear']:g}",
         f"{r['for_s']:g} s", r["about"])
        for r in found["items"]
    ]  # fmt: skip
    headers = ("rule", "severity", "fires if", "ends at", "for", "what it is")
    show.table(headers, rows, "No rules.")


@alerts.command("acknowledge")
@click.argument("alert")
@connection_options
def acknowledge_alert(
    alert: str, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """Take an alert up: nobody is told of it again until it ends."""
    done = Client(url, token, data).post("alerts", alert, "acknowledge")
    if as_json:
        show.document("alert", done)
    else:
        click.echo(f"{done['rule']} is taken up by {done['acknowledged_by']}")


@alerts.command("silence")
@click.argument("alert")
@click.option("--hours", type=FiniteRange(min=0, max=2160), default=4.0, show_default=True,
              help="For how long; 0 ends a silence.")  # fmt: skip
@connection_options
def silence_alert(
    alert: str, hours: float, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """Tell nobody of an alert for a while."""
    body = {"seconds": hours * 3600}
    done = Client(url, token, data).post("alerts", alert, "silence", body=body)
    if as_json:
        show.document("alert", done)
    else:
        until = done["silenced_until"]
        click.echo(f"{done['rule']} is silent until {show.moment(until)}" if until
                   else f"{done['rule']} is silent no more")  # fmt: skip

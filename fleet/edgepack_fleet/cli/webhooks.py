"""`edgepack fleet webhooks`: post changes to a URL."""

from pathlib import Path

import click

from edgepack_fleet.cli import show
from edgepack_fleet.cli.client import Client, connection_options

__all__ = ["webhooks"]


@click.group()
def webhooks() -> None:
    """Post changes to a URL."""


@webhooks.command("create")
@click.argument("receiver", metavar="URL")
@click.option("--type", "types", multiple=True, help="Only changes of this type; repeatable.")
@connection_options
def create_webhook(
    receiver: str,
    types: tuple[str, ...],
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Register URL and print the key of its signatures; it is shown this once.

    \b
    Example:
        edgepack fleet webhooks create https://hooks.example.org/edge \\
            --type edgepack.rollout.state --data fleet
    """
    body = {"url": receiver, "types": list(types)}
    made = Client(url, token, data).post("webhooks", body=body)
    if as_json:
        show.document("webhook", made)
    else:
        click.echo(made["secret"])
        click.echo(f"{made['id']} posts to {made['url']}", err=True)


@webhooks.command("list")
@connection_options
def list_webhooks(url: str | None, token: str | None, data: Path | None, as_json: bool) -> None:
    """List webhooks, each with the last answer it gave."""
    found = Client(url, token, data).list("webhooks")
    if as_json:
        show.document("webhooks", found)
        return
    rows = [
        (w["id"], w["url"], ", ".join(w["types"]) or "all", w["state"], w["last_answer"],
         show.moment(w["last_time"]))
        for w in found["webhooks"]
    ]  # fmt: skip
    empty = "There is none yet: edgepack fleet webhooks create URL"
    show.table(("webhook", "url", "types", "state", "last answer", "at"), rows, empty)


@webhooks.command("show")
@click.argument("webhook")
@connection_options
def show_webhook(
    webhook: str, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """Show what was, or is to be, posted to one webhook, newest first."""
    found = Client(url, token, data).list("webhooks", webhook, "deliveries")
    if as_json:
        show.document("deliveries", found)
        return
    rows = [
        (d["id"], d["type"], d["state"], d["tries"], d["answer"], show.moment(d["created"]))
        for d in found["deliveries"]
    ]
    headers = ("message", "type", "state", "tries", "last answer", "created")
    show.table(headers, rows, "Nothing was posted yet.")


@webhooks.command("test")
@click.argument("webhook")
@connection_options
def test_webhook(
    webhook: str, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """Post a message that says nothing; one that was gone is active again."""
    done = Client(url, token, data).post("webhooks", webhook, "test")
    if as_json:
        show.document("webhook", done)
    else:
        click.echo(f"on its way; see: edgepack fleet webhooks show {done['id']}", err=True)


@webhooks.command("delete")
@click.argument("webhook")
@connection_options
def delete_webhook(
    webhook: str, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """Post nothing there any more; what waits is dropped."""
    Client(url, token, data).delete("webhooks", webhook)
    if as_json:
        show.document("deleted", {"id": webhook})
    else:
        click.echo(f"{webhook} is deleted")

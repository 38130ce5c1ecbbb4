"""`edgepack-agent serve`: one bundle on the device's own runner, without a fleet or an update."""

import queue
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from edgepack.bundle import Bundle, open_bundle
from edgepack.cli import print_json
from edgepack.errors import EdgepackError, IntegrityError, UnsupportedError, UsageError
from edgepack.keys import load_public
from edgepack_agent.adapters.runner import Event, Runner
from edgepack_agent.runner.setup import Setup

__all__ = ["serve"]

_GRACE_S = 5.0
_ERRORS: dict[int, type[EdgepackError]] = {
    kind.exit_code: kind for kind in (UsageError, IntegrityError, UnsupportedError)
}
_Events = queue.SimpleQueue[Event]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--listen", metavar="127.0.0.1:PORT", help="Serve HTTP there; port 0 picks one.")
@click.option("--unix", type=click.Path(path_type=Path), help="Serve HTTP on this unix socket.")
@click.option("--key", type=click.Path(path_type=Path), help="Public key that must have signed.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the runtime.")
@click.option("--json", "as_json", is_flag=True, help="Say where it serves as JSON.")
def serve(
    bundle: Path,
    listen: str | None,
    unix: Path | None,
    key: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Serve BUNDLE over the Open Inference Protocol until interrupted."""
    with ExitStack() as stack:
        slot = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgepack-serve-")))
        sockets = [stack.enter_context(s) for s in _listeners(listen, unix, stack)]
        opened = stack.enter_context(open_bundle(bundle))
        _check_signature(opened, key)
        opened.extract(slot)
        events = stack.enter_context(_terminable())
        setup = Setup(threads=threads)
        runner = Runner.start(slot, sockets, lambda _, event: events.put(event), setup)
        stack.callback(runner.stop, _GRACE_S)
        _begin(runner, events)
        _announce(opened, sockets, as_json=as_json)
        _wait(events, "terminated")


def _check_signature(bundle: Bundle, key: Path | None) -> None:
    if key:
        bundle.verify(load_public(key))
    elif bundle.signed:
        click.echo("warning: signature not checked; give --key PUB.pem to check it", err=True)
    else:
        click.echo("warning: the bundle is not signed; an agent would refuse it", err=True)


def _listeners(listen: str | None, unix: Path | None, stack: ExitStack) -> Iterator[socket.socket]:
    if listen is None and unix is None:
        raise UsageError("nowhere to serve", fix="give --listen 127.0.0.1:PORT or --unix PATH")
    if listen is not None:
        yield _listen_tcp(listen)
    if unix is not None:
        yield _listen_unix(unix)
        stack.callback(unix.unlink, missing_ok=True)


def _listen_tcp(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    if host != "127.0.0.1" or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise UsageError(
            f"cannot listen on {address}",
            why="models are served to this machine only",
            fix="use --listen 127.0.0.1:PORT",
        )
    try:
        return socket.create_server((host, int(port)))
    except OSError as error:
        raise UsageError(f"cannot listen on {address}", why=str(error)) from error


def _listen_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        if _abandoned(path):
            path.unlink()
        listener.bind(str(path))
        path.chmod(0o660)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen on {path}", why=str(error)) from error
    return listener


def _abandoned(path: Path) -> bool:
    """Say whether PATH is a socket that nobody listens on any more."""
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False


@contextmanager
def _terminable() -> Iterator[_Events]:
    """Give a queue of events in which SIGTERM is one, too."""
    events: _Events = queue.SimpleQueue()

    def terminate(*_: Any) -> None:
        events.put({"evt": "terminate"})

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield events
    finally:
        signal.signal(signal.SIGTERM, before)


def _begin(runner: Runner, events: _Events) -> None:
    _wait(events, "loaded")
    runner.send({"cmd": "check", "exam": None, "min_score": 0.0})
    if not _wait(events, "checked")["golden"]["passed"]:
        click.echo("warning: this machine does not answer the golden vectors as built", err=True)
    runner.send({"cmd": "accept"})
    _wait(events, "accepting")


def _wait(events: _Events, name: str) -> Event:
    """Return the next event NAME.

    Raises:
        EdgepackError: the runner has failed or ended.
        Exit: the command was asked to end.
    """
    while (event := events.get())["evt"] != name:
        match event["evt"]:
            case "terminate":
                raise click.exceptions.Exit(0)
            case "failed":
                kind = _ERRORS.get(event["code"], EdgepackError)
                raise kind(event["message"], reason=event["reason"])
            case "exited":
                raise EdgepackError(
                    "the runner ended unexpectedly",
                    why=f"exit code {event['code']}",
                    reason="runner_exited",
                )
    return event


def _announce(bundle: Bundle, sockets: list[socket.socket], *, as_json: bool) -> None:
    places = [_place(listener) for listener in sockets]
    release, digest = bundle.manifest.release, bundle.digest
    if as_json:
        print_json(
            {"schema": "edgepack.serve/v1", "release": release, "digest": digest, "at": places}
        )
    else:
        click.echo(f"{release} ({digest[:19]}) at {', '.join(places)}")


def _place(listener: socket.socket) -> str:
    name = listener.getsockname()
    return f"unix:{name}" if isinstance(name, str) else f"http://{name[0]}:{name[1]}"

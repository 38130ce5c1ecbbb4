"""Looks at everything one agent needs, in the order in which it needs it. Changes nothing.

Works with a running agent and without. What only root may look at is said to be unknown, not to
be wrong.
"""

import contextlib
import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from shutil import disk_usage
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from edgepack.errors import EdgepackError, IntegrityError
from edgepack_agent.adapters import reach, service, storage
from edgepack_agent.adapters.control import call
from edgepack_agent.adapters.floors import BUILD_TIME, Floors
from edgepack_agent.adapters.identity import Identity, load_identity
from edgepack_agent.adapters.journal import Journal
from edgepack_agent.adapters.outbox import Outbox
from edgepack_agent.adapters.timesync import synchronised
from edgepack_agent.config import Config, address
from edgepack_agent.core import doctor
from edgepack_agent.core.doctor import Finding
from edgepack_agent.core.state import State
from edgepack_agent.runner import landlock
from edgepack_agent.runner.slot import open_slot
from edgepack_agent.settings import read_config
from edgepack_targets import registry

__all__ = ["examine"]

MODULES = {
    "onnx": "onnxruntime",
    "onnx-mobile": "onnxruntime",
    "openvino": "openvino",
    "tflite": "ai_edge_litert.interpreter",
}
CHILD_S = 60.0
ASK_S = 10.0
Check = Callable[["_Site"], Iterator[Finding]]


@dataclass(slots=True)
class _Site:
    """What the checks look at, and what earlier ones have found out."""

    config: Config
    now: datetime
    status: dict[str, Any] | None = None
    """What the running agent says; None if none answers."""
    identity: Identity | None = None
    state: State | None = None
    floor: int = BUILD_TIME
    place: service.Place = field(default_factory=service.Place)

    @property
    def data(self) -> Path:
        return self.config.data_dir


def examine(path: Path | None, now: datetime, instance: str = "") -> Iterator[Finding]:
    """Yield what is found about the agent whose configuration is in PATH, at the time NOW.

    Args:
        path: Of the configuration; None: that of the system.
        now: Aware.
        instance: Which agent of this box it is; empty: the one without a name.
    """
    site = _Site(Config(), now, place=service.Place(instance=instance))
    try:
        site.config, files = read_config(path)
        told = ", ".join(map(str, files.read)) or "the defaults hold"
        yield Finding("config", "ok", told)
    except EdgepackError as error:
        yield _failure("config", error)
    with contextlib.suppress(EdgepackError):
        site.status = call(site.config.control_socket, "status", timeout_s=ASK_S)
    for name, check in _checks(site):
        try:
            yield from check(site)
        except EdgepackError as error:
            yield _failure(name, error)
        except ValueError as error:
            # What should be text, an address or a certificate, and is not.
            fix = "enrol this device anew, or restore the file"
            yield Finding(name, "fail", "a file does not hold what it should", str(error), fix, 1)
        except PermissionError as error:
            yield _hidden(name, Path(error.filename or site.data))
        except OSError as error:
            what = f"{error.filename or site.data} cannot be used"
            yield Finding(name, "fail", what, error.strerror or str(error), "check the disk", 1)


def _checks(site: _Site) -> list[tuple[str, Check]]:
    of_data: list[tuple[str, Check]] = [
        ("identity", _identity),
        ("certificate", _certificate),
        ("floors", _floors),
        ("clock", _clock),
        ("disk", _disk),
        ("journal", _journal),
        ("outbox", _outbox),
        ("slots", _slots),
    ]
    if not os.access(site.data, os.R_OK | os.X_OK) and site.data.exists():
        of_data = [("data", lambda site: iter([_hidden("data", site.data)])), ("clock", _clock)]
    return [
        *of_data,
        ("runtimes", _runtimes),
        ("agent", _agent),
        ("landlock", _landlock),
        ("api", _api),
        ("broker", _broker),
        ("fleet", _fleet),
        ("sources", _sources),
        ("unit", _unit),
    ]


def _failure(check: str, error: EdgepackError) -> Finding:
    return Finding(check, "fail", error.what, error.why, error.fix, error.exit_code)


def _hidden(check: str, path: Path) -> Finding:
    return Finding(
        check, "warn", f"only root and the agent's user can look into {path}",
        fix="sudo edgepack-agent doctor",
    )  # fmt: skip


def _identity(site: _Site) -> Iterator[Finding]:
    site.identity = load_identity(site.config.identity_dir)
    if site.identity is None:
        yield Finding(
            "identity", "fail", "this device is not enrolled",
            f"there is no {site.config.identity_dir}",
            "edgepack-agent enroll TOKEN --root FILE", doctor.USAGE,
        )  # fmt: skip
        return
    site.identity.report_key()
    owner = site.data.stat().st_uid
    strange = [p for p in site.config.identity_dir.iterdir() if p.stat().st_uid != owner]
    if strange and owner != 0:
        yield Finding(
            "identity", "fail", f"{strange[0]} does not belong to the agent's user",
            "somebody else has written it", f"chown -R --reference={site.data} {site.data}",
            doctor.USAGE,
        )  # fmt: skip
        return
    yield Finding("identity", "ok", f"{site.identity.device} of group {site.identity.group}")


def _certificate(site: _Site) -> Iterator[Finding]:
    if site.identity is None:
        return
    folder = site.identity.directory
    try:
        found = x509.load_pem_x509_certificate((folder / "certificate.pem").read_bytes())
        key = load_pem_private_key((folder / "key.pem").read_bytes(), None)
    except (ValueError, TypeError) as error:
        yield Finding(
            "certificate", "fail", "key or certificate cannot be read", str(error),
            "enrol this device anew", doctor.INTEGRITY,
        )  # fmt: skip
        return
    held = found.public_key() == key.public_key()
    yield doctor.certificate(
        found.not_valid_before_utc, found.not_valid_after_utc, site.now, held=held
    )


def _floors(site: _Site) -> Iterator[Finding]:
    found = Floors(site.data / "floors.json")
    site.floor = max(site.floor, found.time)
    yield Finding("floors", "ok", "what may never go back can be read")


def _clock(site: _Site) -> Iterator[Finding]:
    floor = datetime.fromtimestamp(site.floor, UTC)
    yield from doctor.clock(site.now, floor, synchronised=synchronised())


def _disk(site: _Site) -> Iterator[Finding]:
    place = next(p for p in (site.data, *site.data.parents) if p.exists())
    usage = disk_usage(place)
    yield doctor.space(usage.free // 2**20, total_mb=usage.total // 2**20)
    if place == site.data:
        storage.sync_works(place)
        yield Finding("disk", "ok", f"{place} can be written and synced")


def _journal(site: _Site) -> Iterator[Finding]:
    path = site.data / "journal.db"
    if not path.exists():
        yield Finding("journal", "ok", "there is none yet")
        return
    with storage.copied(path) as copy, contextlib.closing(Journal(copy)) as journal:
        if journal.lost:
            yield Finding(
                "journal", "fail", "the journal cannot be read", f"{path} is damaged",
                "restart the agent: it goes on with the model that proves to be whole", 1,
            )  # fmt: skip
            return
        site.state = journal.state
    yield Finding("journal", "ok", f"the update engine is in phase {site.state.phase}")


def _outbox(site: _Site) -> Iterator[Finding]:
    path = site.data / "outbox.db"
    if not path.exists():
        return
    with storage.copied(path) as copy, contextlib.closing(Outbox(copy)) as outbox:
        if outbox.lost_database:
            yield Finding(
                "outbox", "warn", "the outbox cannot be read", f"{path} is damaged",
                "restart the agent: it begins a new one",
            )  # fmt: skip
            return
        yield Finding("outbox", "ok", f"{len(outbox)} rows wait for the fleet's acknowledgement")


def _slots(site: _Site) -> Iterator[Finding]:
    slots = [s for s in (site.state.current, site.state.previous) if s] if site.state else []
    if not slots:
        yield Finding("slots", "warn", "no model is installed", fix="roll one out to this device")
    for slot in slots:
        try:
            found = open_slot(site.data / "slots" / slot.name).digest
            why = "" if found == slot.model.digest else f"its digest is {found[:19]}"
        except IntegrityError as error:
            why = f"{error}; {error.why}".rstrip("; ")
        if why:
            yield Finding(
                "slots", "fail", f"slot {slot.name} no longer holds {slot.model.release}", why,
                "edgepack-agent rollback, or roll the model out again", doctor.INTEGRITY,
            )  # fmt: skip
        else:
            told = f"slot {slot.name} holds {slot.model.release}, every byte"
            yield Finding("slots", "ok", told)


def _runtimes(site: _Site) -> Iterator[Finding]:
    installed = registry.installed()
    wanted = site.config.runtimes or tuple(installed)
    for name in [name for name in wanted if name not in installed]:
        yield Finding(
            "runtimes", "warn", f"{name} is wanted and not installed",
            fix=f'pip install "edgepack[{name}]"',
        )  # fmt: skip
    usable = [name for name in wanted if name in installed]
    if not usable:
        yield Finding(
            "runtimes", "fail", "there is no runtime: no model can run here",
            fix='pip install "edgepack[onnx]", or openvino, or tflite', code=doctor.UNSUPPORTED,
        )  # fmt: skip
    for name in usable:
        yield _loads(name, installed[name])


def _loads(name: str, version: str) -> Finding:
    """Import the runtime NAME in a child: it may crash, and is not to stay in this process."""
    command = [sys.executable, "-P", "-c", f"import {MODULES.get(name, 'edgepack_targets')}"]
    env = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=CHILD_S, env=env
        )
    except subprocess.TimeoutExpired:
        return Finding("runtimes", "fail", f"{name} {version} hangs", code=doctor.UNSUPPORTED)
    if done.returncode == 0:
        return Finding("runtimes", "ok", f"{name} {version} loads")
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return Finding(
        "runtimes", "fail", f"{name} {version} does not load", lines[-1],
        "is it made for this processor? see its requirements", doctor.UNSUPPORTED,
    )  # fmt: skip


def _agent(site: _Site) -> Iterator[Finding]:
    status = site.status
    if status is None:
        yield Finding(
            "agent", "warn", "no agent answers", f"on {site.config.control_socket}",
            "systemctl start edgepack-agent; as another user than root you are not heard",
        )  # fmt: skip
    elif status.get("bundle") and not status.get("serving"):
        yield Finding(
            "agent", "fail", f"{status['bundle']} does not serve", str(status.get("trouble", "")),
            "edgepack-agent logs; edgepack-agent rollback", 1,
        )  # fmt: skip
    else:
        serves = status.get("serving") or "no model yet"
        yield Finding("agent", "ok", f"it runs: {status.get('phase')}, {serves}")


def _landlock(site: _Site) -> Iterator[Finding]:
    """Say what the runner has told, or else what this kernel could do for one."""
    told = site.status.get("runner", {}).get("landlock") if site.status else None
    yield doctor.confinement(told if told is not None else landlock.abi() > 0)


def _api(site: _Site) -> Iterator[Finding]:
    if site.status is None:
        return
    place = str(site.config.api_socket)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(ASK_S)
        peer.connect(place)
        if site.status.get("serving"):
            _ask_health(peer)
    if site.config.listen:
        socket.create_connection(address(site.config.listen), ASK_S).close()
        place += f" and {site.config.listen}"
    yield Finding("api", "ok", f"the inference API answers on {place}")


def _ask_health(peer: socket.socket) -> None:
    asked = http.client.HTTPConnection("localhost")
    asked.sock = peer
    asked.request("GET", "/v2/health/ready")
    status = asked.getresponse().status
    if status != http.HTTPStatus.OK:
        raise EdgepackError("the inference API is not ready", why=f"HTTP status {status}")


def _broker(site: _Site) -> Iterator[Finding]:
    identity = site.identity
    if identity is None:
        return
    given = site.config.broker
    place = address(given) if given else (identity.broker_host, identity.broker_port)
    reach.reach(*place, identity.tls())
    if site.status and site.status.get("connected"):
        yield Finding("broker", "ok", f"connected to {place[0]}:{place[1]}")
        return
    # With an agent that is connected this would throw it out.
    reach.log_in(identity.device, *place, identity.tls())
    yield Finding("broker", "ok", f"{place[0]}:{place[1]} lets this device log in")


def _fleet(site: _Site) -> Iterator[Finding]:
    identity = site.identity
    if identity is None or not (host := urlsplit(identity.url).hostname):
        return
    reach.reach(host, urlsplit(identity.url).port or 443, identity.tls())
    yield Finding("fleet", "ok", f"{identity.url} answers")


def _sources(site: _Site) -> Iterator[Finding]:
    for source in site.config.sources:
        kind, _, place = source.source.partition(":")
        path = Path(place)
        if kind != "dir":
            yield Finding("sources", "ok", f"{source.name}: not looked at")
        elif service.standing(site.place).installed and (why := service.hidden(path)):
            yield Finding("sources", "fail", f"{source.name}: {path}", why, "move it", doctor.USAGE)
        elif not path.is_dir() or not os.access(path, os.R_OK | os.X_OK):
            why = "it cannot be read" if path.exists() else "there is no such directory"
            yield Finding(
                "sources", "fail", f"{source.name}: {path}", why,
                "make it, or change `sources`", doctor.USAGE,
            )  # fmt: skip
        else:
            yield Finding("sources", "ok", f"{source.name}: {path}")


def _unit(site: _Site) -> Iterator[Finding]:
    found = service.standing(site.place)
    command = (
        f"edgepack-agent --instance {name}" if (name := site.place.instance) else "edgepack-agent"
    )
    again = f"{command} service install --now"
    if not found.installed:
        yield Finding("unit", "warn", "the service is not installed", fix=again)
    elif not found.current:
        why = "it is of another version, or was changed"
        yield Finding("unit", "warn", "the unit is not what this version writes", why, again)
    elif not found.enabled:
        yield Finding("unit", "warn", "the service does not start at boot", fix=again)
    elif not found.watchdog:
        why = "a drop-in has switched it off"
        yield Finding("unit", "warn", "nobody ends an agent that hangs", why, "set WatchdogSec=30")
    elif found.active == "failed":
        fix = f"{command} logs"
        yield Finding("unit", "fail", "the service has failed", fix=fix, code=1)
    else:
        told = found.active or "systemd does not run here"
        yield Finding("unit", "ok", f"installed, up to date, starts at boot ({told})")

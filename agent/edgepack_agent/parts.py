"""Everything one agent is made of, put together from its configuration. Starts nothing but threads.

What may fail for a person (a taken port, an unreadable identity) fails here, before the loop.
"""

import queue
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.durable import sweep
from edgepack.errors import UsageError
from edgepack.messages import Inventory
from edgepack.trust import TrustError
from edgepack_agent.adapters.allowance import Allowance
from edgepack_agent.adapters.alone import take_data
from edgepack_agent.adapters.api_token import api_token
from edgepack_agent.adapters.checking import check_up
from edgepack_agent.adapters.clock import read_stamp
from edgepack_agent.adapters.compiled import Compiled
from edgepack_agent.adapters.control import ControlServer
from edgepack_agent.adapters.download import Downloads, disk_errors
from edgepack_agent.adapters.floors import Floors
from edgepack_agent.adapters.https import Https, Links
from edgepack_agent.adapters.identity import Identity, load_identity
from edgepack_agent.adapters.install import Installer
from edgepack_agent.adapters.installed import Shelf
from edgepack_agent.adapters.inventory import read_inventory
from edgepack_agent.adapters.jobs import Desk
from edgepack_agent.adapters.journal import Journal
from edgepack_agent.adapters.lock import Locks
from edgepack_agent.adapters.logs import recent, set_level
from edgepack_agent.adapters.mqtt import Heard, Link, LinkChanged
from edgepack_agent.adapters.network import Metering
from edgepack_agent.adapters.notify import Notifier
from edgepack_agent.adapters.outbox import Outbox
from edgepack_agent.adapters.pacing import Cap
from edgepack_agent.adapters.patching import Patching, PatchRules
from edgepack_agent.adapters.power import read_power
from edgepack_agent.adapters.renewal import Renewer
from edgepack_agent.adapters.reports import Reports
from edgepack_agent.adapters.requests import Requests
from edgepack_agent.adapters.route import Route
from edgepack_agent.adapters.signing import Signing
from edgepack_agent.adapters.slots import Slots
from edgepack_agent.adapters.trust import TrustClient
from edgepack_agent.adapters.worker import Worker
from edgepack_agent.answering import Answering, Finder
from edgepack_agent.config import Config, TransferConfig, address
from edgepack_agent.core.deferral import Power
from edgepack_agent.core.delta import Report
from edgepack_agent.core.events import Event
from edgepack_agent.core.pace import Limits
from edgepack_agent.core.state import Model, Stamp
from edgepack_agent.drifting import Drifting
from edgepack_agent.serving import Serving, open_sockets
from edgepack_agent.steering import Steering

if TYPE_CHECKING:
    from edgepack_agent.adapters.announcer import Announcer

__all__ = ["Parts", "assemble"]

MAX_WAITING = 256
"""Happenings that wait before messages are dropped."""
KILOBIT = 125.0
"""Bytes."""
SLOW_S, STALL_S = 120.0, 60.0
"""Seconds over which a download must keep its minimum rate, and that it may stand still."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The adapters of one agent; they all post to `queue`."""

    steering: Steering
    lock: int
    """A descriptor; the data belong to whoever holds it."""
    identity: Identity
    queue: "queue.SimpleQueue[Any]"
    journal: Journal
    outbox: Outbox
    allowance: Allowance
    downloads: Downloads
    slots: Slots
    floors: Floors
    link: Link
    desk: Desk
    reports: Reports
    drifting: Drifting
    installer: Installer
    worker: Worker[Event | None]
    serving: Serving
    control: ControlServer
    notifier: Notifier
    renewer: Renewer
    answering: Answering
    announcer: "Announcer | None"
    inventory: Callable[[], Inventory]
    locks: Locks
    now: Callable[[], Stamp] = read_stamp
    power: Callable[[], Power] = read_power

    @property
    def config(self) -> Config:
        """The settings that hold now."""
        return self.steering.config

    @property
    def requests(self) -> Requests:
        """What the fleet asks of this device."""
        return self.answering.requests

    def raise_floor(self, line: str, epoch: int) -> None:
        """Raise the epoch floor of the model LINE: a model of EPOCH was committed.

        Raises:
            EdgepackError: it cannot be written.
        """
        with disk_errors():
            self.floors.confirm(line, epoch)

    def check_floor(self, model: Model) -> None:
        """Check that MODEL has not been revoked since it ran here.

        Raises:
            TrustError: it has.
        """
        line = model.release.partition("@")[0]
        floor = max(self.floors.epoch(line), self.floors.standing(line).min_epoch)
        if model.epoch < floor:
            raise TrustError("epoch_below_floor", f"{model.release} has been revoked")

    def stops(self, model: Model) -> bool:
        """Say whether MODEL must not serve any more, by what its publisher said last."""
        return self.floors.standing(model.release.partition("@")[0]).stops(model.epoch)


def assemble(config: Config, file: Path | None = None, said: Collection[str] = ()) -> Parts:
    """Return the parts of the agent of CONFIG, which was read from FILE and SAID these keys.

    Raises:
        UsageError: this device is not enrolled, or an address is taken.
        EdgepackError: the disk cannot be used, or what the device remembers is damaged.
    """
    identity, steering = _enrolled(config), Steering(config, said)
    config = steering.config
    happenings: queue.SimpleQueue[Any] = queue.SimpleQueue()
    post = happenings.put
    data, lock = config.data_dir, take_data(config.data_dir)
    sweep(data)
    control = ControlServer(config.control_socket, post)
    journal, outbox = Journal(data / "journal.db"), Outbox(data / "outbox.db")
    downloads = Downloads(data / "blobs", data / "parts")
    slots, floors = Slots(data / "slots", downloads), Floors(data / "floors.json")
    with suppress(OSError):  # of a measurement that lost its power; the next one tries again
        slots.drop_measured()

    def inventory() -> Inventory:
        return read_inventory(data, shelf.read(), config.runtimes)

    def hear(happening: LinkChanged | Heard) -> None:
        # Whatever a fleet says, it says again; a flood of it must not fill the memory.
        if isinstance(happening, LinkChanged) or happenings.qsize() < MAX_WAITING:
            post(happening)

    fleet = address(config.broker) if config.broker else identity.broker
    shelf, links = Shelf(), Links(lambda: post(desk.ask))
    link = Link(identity, fleet, partial(_birth, outbox, shelf, journal, identity), hear)
    allowance = Allowance(outbox, config.telemetry.max_kb_per_day, link.say)
    signing = Signing(identity, allowance.say)
    desk = Desk(signing.say, post, links.take, shadow=config.update.shadow)
    metering = _metering(config.transfer, fleet[0], links)
    route = _route(config.transfer, link, Https(links, identity.tls), metering)
    # From the worker's thread; the loop notes it before the step's own result.
    patching = _patching(config, downloads, link, metering, lambda r: post(partial(_note, desk, r)))
    trust = _trust(data, identity, link, floors)
    reports = Reports(outbox, config.telemetry.level, signing.say, batches=allowance.batches)
    serving = _serving(config, slots, downloads, post)
    steering.then(partial(_steer, reports, allowance, route, serving))
    return Parts(
        steering=steering,
        lock=lock,
        identity=identity,
        queue=happenings,
        journal=journal,
        outbox=outbox,
        allowance=allowance,
        downloads=downloads,
        slots=slots,
        floors=floors,
        link=link,
        desk=desk,
        reports=reports,
        drifting=Drifting(slots.baseline, config.drift.rule(), reports.noticed, time.monotonic),
        installer=Installer(trust, downloads, slots, route, inventory, patching),
        worker=Worker(post),
        serving=serving,
        control=control,
        notifier=Notifier(),
        renewer=Renewer(identity, link.say, link.renew, post),
        answering=_answering(signing.say, post, steering, file),
        inventory=inventory,
        announcer=_announcer(config, identity.device, shelf, lambda: post(desk.ask)),
        locks=Locks(data / "lock.json", config.run_dir / "inhibit", time.time),
    )


def _answering(
    say: Callable[[str, bytes], bool],
    post: Callable[[Callable[[], None]], None],
    steering: Steering,
    file: Path | None,
) -> Answering:
    finders: dict[str, Finder] = {
        "doctor": lambda _request, _over: check_up(file),
        "logs": lambda request, _over: recent(request.args),
    }
    return Answering(say, post, lambda: steering.config, finders, settings=steering.told)


def _enrolled(config: Config) -> Identity:
    identity = load_identity(config.identity_dir)
    if identity is None:
        raise UsageError(
            "this device is not enrolled",
            why=f"there is no {config.identity_dir}",
            fix="edgepack-agent enroll TOKEN --root FILE",
            reason="not_enrolled",
        )
    return identity


def _steer(
    reports: Reports, allowance: Allowance, route: Route, serving: Serving, config: Config
) -> None:
    """Let CONFIG hold from now on; what reads it anew every time needs no telling."""
    reports.tell(config.telemetry.level)
    allowance.limit(config.telemetry.max_kb_per_day)
    route.limit(*_pace(config.transfer))
    set_level(config.log_level)
    serving.follow(config)


def _announcer(
    config: Config, device: str, shelf: Shelf, wanted: Callable[[], None]
) -> "Announcer | None":
    events = config.events
    if events.broker is None:
        return None
    from edgepack_agent.adapters.announcer import Announcer
    from edgepack_agent.core.announcement import Names, Sights

    names = Names(device, events.prefix, events.discovery_prefix)
    login = None
    if events.username is not None and events.password_file is not None:
        login = events.username, Path(events.password_file)
    sights = Sights(config.sightings.labels, config.snapshots.publish)
    agent, album = shelf.read().agent, config.snapshots_dir
    return Announcer(events.broker, names, agent, login, wanted, sights, album)


def _serving(
    config: Config, slots: Slots, downloads: Downloads, post: Callable[[Any], None]
) -> Serving:
    sockets, compiled = open_sockets(config), Compiled(config.data_dir / "compiled")
    return Serving(config, sockets, slots.path, downloads.path, compiled, post, _token(config))


def _token(config: Config) -> str | None:
    over_tcp = config.listen or config.api.grpc
    return api_token(config.api_token) if over_tcp and config.api.token else None


def _birth(outbox: Outbox, shelf: Shelf, journal: Journal, identity: Identity) -> dict[str, Any]:
    facts = {"boot": outbox.boot, "agent": shelf.read().agent, "bundle": _active(journal)}
    return facts | identity.in_use()


def _active(journal: Journal) -> str | None:
    current = journal.state.current
    return current.model.release if current else None


def _trust(data: Path, identity: Identity, link: Link, floors: Floors) -> TrustClient:
    return TrustClient(
        data / "trust",
        identity.device,
        link.transfers,
        identity.image_root,
        identity.director_root,
        floors,
    )


def _note(desk: Desk, report: Report) -> None:
    desk.note("patches", report.facts())


def _metering(config: TransferConfig, broker: str, links: Links) -> Metering:
    def hosts() -> list[str]:
        # Files over HTTPS may take another interface than the broker's messages.
        link = links.current
        return [broker, link.host] if link and config.via != "mqtt" else [broker]

    return Metering(
        hosts,
        config.metered_interfaces,
        wait=config.metered == "wait",
        sparing=config.metered == "patches",
    )


def _patching(
    config: Config,
    downloads: Downloads,
    link: Link,
    metering: Metering,
    tell: Callable[[Report], None],
) -> Patching:
    delta = config.transfer.delta
    return Patching(
        downloads,
        config.data_dir / "parts",
        lambda name, limit: link.transfers.metadata("image", name, limit),
        PatchRules(delta.use, delta.fallback, delta.memory_mb * 2**20),
        whole=metering.check_whole,
        tell=tell,
    )


def _route(config: TransferConfig, link: Link, https: Https, metering: Metering) -> Route:
    limits, rate = _pace(config)
    return Route(
        {"mqtt": link.transfers, "https": https},
        config.via,
        lambda: https.ready,
        metering,
        limits,
        Cap(rate),
    )


def _pace(config: TransferConfig) -> tuple[Limits, float | None]:
    """Return what downloads keep up, and the bytes a second they must not exceed."""
    limits = Limits(config.min_kbps * KILOBIT, SLOW_S, STALL_S)
    return limits, config.max_kbps * KILOBIT if config.max_kbps else None

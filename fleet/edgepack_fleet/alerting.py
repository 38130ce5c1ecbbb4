"""Alerts in the database: looked at, told of, taken up, silenced.

What is to be told is written in the transaction in which an alert changes, and sent until it is
taken or too late. Webhooks and the stream hear of alerts as of every change; mail and the site's
broker are sent one message for all that happened at one look.
"""

import hashlib
import json
import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack.errors import UsageError
from edgepack_fleet.adapters.alert_tables import AlertRow, NoticeRow
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.notifying import publish, send_mail
from edgepack_fleet.adapters.tables import DeviceRow, JobRow
from edgepack_fleet.core.alert_rules import AlertConfig
from edgepack_fleet.core.alerts import Alert, Reading, Rule, State, Told, nobody_runs, step
from edgepack_fleet.core.hooks import pause_s
from edgepack_fleet.core.units import measured

__all__ = ["Alerts"]

LOOK_S = 30.0
DEADLINE_S = 86_400.0
"""Seconds after which a message is given up: who reads it then is misled."""
AT_ONCE = 20
IDLE_S = 5.0
Watched = tuple[Mapping[str, str], float | None]
"""What a rule looks at, and what is measured of it."""
SEVERITIES = ("info", "warning", "critical")
log = logging.getLogger(__name__)


class Alerts:
    """Watches by rules and tells, in a thread of its own.

    Args:
        database: Where alerts are.
        config: Rules, and who is told.
        readings: Returns what is measured, at a time in Unix seconds.
        clock: Unix seconds.
    """

    def __init__(
        self,
        database: Database,
        config: AlertConfig,
        readings: Callable[[float], Sequence[Reading]],
        clock: Callable[[], float],
    ) -> None:
        self.config = config
        self._database, self._readings, self._clock = database, readings, clock
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet-alerts", daemon=True)
        self._looked: float | None = None
        self.leads: Callable[[], bool] = lambda: True
        """Whether this worker watches; of several only one does."""

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is not sent yet waits in the database."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(15)

    def look(self) -> None:
        """Measure, and let every rule judge."""
        now = self._clock()
        found = self._readings(now)
        with self._database.write() as session:
            rows = {row.id: row for row in session.scalars(select(AlertRow).with_for_update())}
            told: list[AlertRow] = []
            running = _running(session)
            for rule in self.config.rules:
                for labels, value in _watched(rule, found, rows):
                    over = nobody_runs(rule.metric, labels, running)
                    row = self._judge(session, rule, (labels, value, over), rows, now)
                    told += [row] if row is not None else []
            known = {rule.name for rule in self.config.rules}
            for row in rows.values():
                if row.rule not in known:
                    session.delete(row)  # nobody looks at it any more
            self._tell(session, told, now)

    def acknowledge(self, alert: str, by: str) -> AlertRow:
        """Say that BY has taken an alert up: it is not told again until it ends.

        Raises:
            UsageError: there is none (`unknown_alert`).
        """
        with self._database.write() as session:
            row = _get(session, alert)
            row.acknowledged = by or "operator"
            return row

    def silence(self, alert: str, seconds: float) -> AlertRow:
        """Tell nobody of an alert for SECONDS from now; 0 ends a silence.

        Raises:
            UsageError: there is none (`unknown_alert`).
        """
        with self._database.write() as session:
            row = _get(session, alert)
            row.silenced = self._clock() + seconds if seconds else 0.0
            return row

    def send(self) -> None:
        """Send what is due; what nobody takes is tried again, until it is too late."""
        now = self._clock()
        query = select(NoticeRow).where(NoticeRow.due <= now).order_by(NoticeRow.id)
        with self._database.read() as session:
            rows = session.scalars(query.limit(AT_ONCE)).all()
        stuck: set[str] = set()
        for row in rows:
            # One that hangs is asked once: others, and the rules, must not wait for it.
            if row.channel in stuck or not self.leads():
                continue
            why = self._sent(row)
            stuck |= {row.channel} if why else set()
            with self._database.write() as session:
                kept = session.get(NoticeRow, row.id)
                if kept is None:
                    continue
                if not why or now - row.created >= DEADLINE_S:
                    session.delete(kept)
                    if why:
                        log.error("alerts could not be told by %s in a day: %s", row.channel, why)
                else:
                    log.warning("alerts are not told by %s yet: %s", row.channel, why)
                    kept.tries += 1
                    kept.due = now + pause_s(kept.tries, random.random())  # noqa: S311

    def _turn(self, now: float) -> None:
        if self._looked is None or not 0 <= now - self._looked < LOOK_S:
            self._looked = now
            self.look()
        self.send()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self.leads():
                    self._turn(self._clock())
            except Exception:  # a thread that ends would silence every alert
                log.exception("alerts could not be looked after; trying again")
            self._wake.wait(IDLE_S)
            self._wake.clear()

    def _judge(
        self,
        session: Session,
        rule: Rule,
        watched: tuple[Mapping[str, str], float | None, str],
        rows: dict[str, AlertRow],
        now: float,
    ) -> AlertRow | None:
        """Move the alert of RULE about what is WATCHED; return its row if somebody is to be told.

        That is labels, the value measured, and why there is nothing to watch any more.
        """
        labels, value, over = watched
        place = _id(rule.name, labels)
        row = rows.get(place)
        before = _alert(row) if row else Alert()
        after, said = step(rule, before, value, now, over)
        if after.state == "inactive" and after.silenced <= now:
            if row is not None:
                session.delete(rows.pop(place))
            return None
        if row is None:
            row = rows[place] = AlertRow(id=place, rule=rule.name, labels=dict(labels), said="")
            session.add(row)
        row.severity = rule.severity
        for name, found in asdict(after).items():
            setattr(row, name, found)
        row.said = said or row.said
        return row if said else None

    def _tell(self, session: Session, rows: Sequence[AlertRow], now: float) -> None:
        metrics = {rule.name: rule.metric for rule in self.config.rules}
        channels = {"mail": self.config.mail, "mqtt": self.config.mqtt}
        for name, channel in channels.items():
            least = SEVERITIES.index(channel.severity) if channel else 0
            mine = [row for row in rows if SEVERITIES.index(row.severity) >= least]
            if channel and mine:
                body = {"alerts": [_facts(row, metrics[row.rule]) for row in mine]}
                session.add(NoticeRow(channel=name, body=body, tries=0, due=now, created=now))

    def _sent(self, row: NoticeRow) -> str:
        """Send a message; return why it is not taken, empty if it is."""
        mail, mqtt = self.config.mail, self.config.mqtt
        alerts = row.body["alerts"]
        try:
            if row.channel == "mail" and mail:
                lines = [_line(alert) for alert in alerts]
                subject = lines[0] if len(lines) == 1 else f"{len(lines)} alerts: {lines[0]}"
                send_mail(mail, f"[edgepack] {subject}"[:200], "\n".join(lines) + "\n")
            elif row.channel == "mqtt" and mqtt:
                publish(mqtt, {"schema": "edgepack.alerts/v1", **row.body})
            else:
                return "this worker has no such channel"
        except (OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"[:300]
        return ""


def _running(session: Session) -> set[tuple[str, str]]:
    """Return the releases that devices run, or try just now, each with their groups."""
    runs = select(DeviceRow.bundle, DeviceRow.group_id).where(
        DeviceRow.revoked.is_(None), DeviceRow.bundle.is_not(None)
    )
    # A device says that it runs a model when its probation is over, and tells of it before.
    tries = select(JobRow.release, DeviceRow.group_id).join(
        JobRow, JobRow.device_id == DeviceRow.id
    )
    tries = tries.where(DeviceRow.revoked.is_(None), JobRow.status == "IN_PROGRESS")
    found = [*session.execute(runs.distinct()), *session.execute(tries.distinct())]
    return {(bundle, group) for bundle, group in found if bundle}


def _watched(rule: Rule, found: Sequence[Reading], rows: Mapping[str, AlertRow]) -> list[Watched]:
    """Return what RULE looks at: all that was measured, and what it stands open about."""
    values: dict[str, Watched] = {
        _id(rule.name, row.labels): (row.labels, None)
        for row in rows.values()
        if row.rule == rule.name
    }
    for reading in found:
        if reading.metric == rule.metric:
            values[_id(rule.name, reading.labels)] = (reading.labels, reading.value)
    return list(values.values())


def _id(rule: str, labels: Mapping[str, str]) -> str:
    text = json.dumps([rule, sorted(labels.items())])
    return "al-" + hashlib.sha256(text.encode()).hexdigest()[:16]


def _alert(row: AlertRow) -> Alert:
    return Alert(
        state=cast("State", row.state),
        since=row.since,
        value=row.value,
        seen=row.seen,
        told=row.told,
        silenced=row.silenced,
        acknowledged=row.acknowledged,
        reason=row.reason,
    )


def _get(session: Session, alert: str) -> AlertRow:
    row = session.get(AlertRow, alert)
    if row is None:
        raise UsageError(
            f"no alert {alert!r}", fix="edgepack fleet alerts list", reason="unknown_alert"
        )
    return row


def _facts(row: AlertRow, metric: str) -> dict[str, Any]:
    said = cast("Told", row.said)
    return {
        "id": row.id,
        "rule": row.rule,
        "severity": row.severity,
        "said": said,
        "labels": row.labels,
        "value": row.value,
        "reading": "" if row.value is None else measured(row.value, metric),
        "since": row.since,
        "reason": row.reason,
    }


def _line(alert: Mapping[str, Any]) -> str:
    about = ", ".join(f"{name} {value}" for name, value in sorted(alert["labels"].items()))
    reading = alert.get("reading")  # of what another version wrote there is none
    value = alert.get("reason") or (f"now {reading}" if reading else "")
    word = {"firing": "fires", "repeat": "still fires", "resolved": "is over"}[alert["said"]]
    text = f"{alert['severity']}: {alert['rule']} {word}{': ' + about if about else ''}"
    text += f" ({value})" if value else ""
    # Names come from devices; a line feed in a subject is one that no mail can have.
    return "".join(letter if letter.isprintable() else " " for letter in text)

"""Webhooks: changes are posted to whoever registered for them, again until they are taken.

A message is put in the outbox by the transaction that makes the change. It may arrive twice, and
late ones after newer ones; its id says which it is. A receiver that is slow or down holds up
nobody else.
"""

import hmac
import json
import logging
import random
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from edgepack.errors import UsageError
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.feed import Feed
from edgepack_fleet.adapters.posting import Outcome, Poster
from edgepack_fleet.adapters.tables import DeliveryRow, WebhookRow
from edgepack_fleet.core.changes import TYPES, Change, cloud_event
from edgepack_fleet.core.hooks import check_url, pause_s, secret_text, signature

__all__ = ["TEST", "Webhooks"]

TRIES = 12
"""The last one comes about two hours after the first."""
AT_ONCE, WORKERS, MOST = 20, 8, 50
"""Messages of one turn, turns at once, webhooks."""
WAITING = 10_000
"""Messages of one webhook; older ones are given up."""
KEPT_S = 7 * 86_400.0
IDLE_S = 1.0
TEST = "edgepack.webhook.test"

log = logging.getLogger(__name__)


class Webhooks:
    """Registers webhooks and posts to them, in threads of its own.

    Args:
        database: Where they and their messages are kept.
        feed: Tells of changes.
        secret: The fleet's; keys of webhooks are derived from it and kept nowhere.
        source: The fleet's URI.
        clock: Unix seconds.
        poster: Posts a message.
        pause: Returns the seconds after so many tries.
    """

    def __init__(
        self,
        database: Database,
        feed: Feed,
        secret: bytes,
        source: str,
        clock: Callable[[], float],
        poster: Poster,
        pause: Callable[[int], float] = lambda tries: pause_s(tries, random.random()),  # noqa: S311
    ) -> None:
        self._database, self._secret, self._source = database, secret, source
        self._clock, self._poster, self._pause = clock, poster, pause
        self._busy: set[str] = set()
        self.leads: Callable[[], bool] = lambda: True
        """Whether this worker posts; of several only one does."""
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._pool = ThreadPoolExecutor(WORKERS, "fleet-webhook")
        self._thread = threading.Thread(target=self._run, name="fleet-webhooks", daemon=True)
        feed.follow(self._queue)
        feed.listen(self._wake.set)

    def start(self) -> None:
        """Begin to post."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is not taken yet waits in the database."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(15)
        self._pool.shutdown(cancel_futures=True)
        self._poster.close()

    def create(self, url: str, types: Sequence[str], by: str) -> tuple[WebhookRow, str]:
        """Register URL for changes of TYPES (none: all); return it and its key for receivers.

        Raises:
            UsageError: we do not post there (`bad_url`), there is no such type, or there are too
                many webhooks (`too_many_webhooks`).
        """
        check_url(url)
        unknown = [kind for kind in types if kind not in TYPES]
        if unknown:
            raise UsageError(f"no such type: {unknown[0]!r}", fix=f"one of {', '.join(TYPES)}")
        row = WebhookRow(
            id=f"w-{secrets.token_hex(4)}",
            url=url,
            types=list(types),
            by=by,
            created=self._clock(),
            state="active",
        )
        with self._database.write() as session:
            if (session.scalar(select(func.count()).select_from(WebhookRow)) or 0) >= MOST:
                raise UsageError(f"there are {MOST} webhooks already", reason="too_many_webhooks")
            session.add(row)
        return row, secret_text(self._key(row.id))

    def delete(self, webhook: str) -> None:
        """Post nothing there any more; what waits is dropped.

        Raises:
            UsageError: there is none (`unknown_webhook`).
        """
        with self._database.write() as session:
            row = self._get(session, webhook)
            session.execute(delete(DeliveryRow).where(DeliveryRow.webhook_id == webhook))
            session.delete(row)

    def test(self, webhook: str) -> None:
        """Send a message that says nothing; one that was given up is tried anew with it.

        Raises:
            UsageError: there is none (`unknown_webhook`).
        """
        now = self._clock()
        event = cloud_event(self._source, 0, now, (TEST, f"webhooks/{webhook}", {}))
        with self._database.write() as session:
            row = self._get(session, webhook)
            row.state = "active"
            event["id"] = f"test-{secrets.token_hex(4)}"
            session.add(_message(webhook, event, now))
        self._wake.set()

    def get(self, webhook: str) -> WebhookRow:
        """Return a webhook.

        Raises:
            UsageError: there is none (`unknown_webhook`).
        """
        with self._database.read() as session:
            return self._get(session, webhook)

    def tidy(self) -> None:
        """Forget old messages, and give up what waits beyond the limit."""
        now = self._clock()
        with self._database.write() as session:
            session.execute(
                delete(DeliveryRow).where(
                    DeliveryRow.state != "pending", DeliveryRow.updated <= now - KEPT_S
                )
            )
            for webhook in session.scalars(select(WebhookRow.id)).all():
                pending = (DeliveryRow.webhook_id == webhook, DeliveryRow.state == "pending")
                newest = select(DeliveryRow.id).where(*pending).order_by(DeliveryRow.id.desc())
                last = session.scalar(newest.offset(WAITING).limit(1))
                if last is not None:
                    late = update(DeliveryRow).where(*pending, DeliveryRow.id <= last)
                    session.execute(late.values(state="dead", answer="too many wait", updated=now))

    def _get(self, session: Session, webhook: str) -> WebhookRow:
        row = session.get(WebhookRow, webhook)
        if row is None:
            raise UsageError(
                f"no webhook {webhook!r}",
                fix="edgepack fleet webhooks list",
                reason="unknown_webhook",
            )
        return row

    def _key(self, webhook: str) -> bytes:
        return hmac.new(self._secret, f"webhook {webhook}".encode(), "sha256").digest()

    def _queue(self, session: Session, now: float, told: Sequence[tuple[int, Change]]) -> None:
        """Put what is TOLD in the outbox, in the transaction of the change."""
        active = select(WebhookRow.id, WebhookRow.types).where(WebhookRow.state == "active")
        rows = [
            _fields(webhook, cloud_event(self._source, number, now, change), now)
            for webhook, types in session.execute(active)
            for number, change in told
            if not types or change[0] in types
        ]
        if rows:
            session.execute(insert(DeliveryRow), rows)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self.leads():
                    self._hand_out()
            except Exception:  # a thread that ends would stop every webhook, silently
                log.exception("webhooks could not be looked after; trying again")
            self._wake.wait(IDLE_S)
            self._wake.clear()

    def _hand_out(self) -> None:
        """Give every webhook that has something due, and is not busy, a turn."""
        due = (
            select(DeliveryRow.webhook_id)
            .join(WebhookRow, WebhookRow.id == DeliveryRow.webhook_id)
            .where(DeliveryRow.state == "pending", DeliveryRow.due <= self._clock())
            .where(WebhookRow.state == "active")
            .distinct()
        )
        with self._database.read() as session:
            webhooks = session.scalars(due).all()
        for webhook in webhooks:
            if webhook not in self._busy and not self._stopping.is_set():
                self._busy.add(webhook)
                self._pool.submit(self._turn, webhook)

    def _turn(self, webhook: str) -> None:
        """Post what is due of one webhook, up to the first that is not taken."""
        try:
            query = (
                select(DeliveryRow)
                .where(DeliveryRow.webhook_id == webhook, DeliveryRow.state == "pending")
                .where(DeliveryRow.due <= self._clock())
                .order_by(DeliveryRow.id)
                .limit(AT_ONCE)
            )
            with self._database.read() as session:
                url = self._get(session, webhook).url
                rows = session.scalars(query).all()
            for row in rows:
                if self._stopping.is_set() or not self._post(url, row):
                    break
        except UsageError:
            pass  # it was deleted meanwhile
        except Exception:  # the next turn tries again
            log.exception("the turn of webhook %s failed", webhook)
            self._stopping.wait(IDLE_S)
        finally:
            self._busy.discard(webhook)
            self._wake.set()

    def _post(self, url: str, row: DeliveryRow) -> bool:
        body = json.dumps(row.event, separators=(",", ":")).encode()
        message, moment = f"msg-{row.id}", int(self._clock())
        headers = {
            "Content-Type": "application/cloudevents+json; charset=utf-8",
            "webhook-id": message,
            "webhook-timestamp": str(moment),
            "webhook-signature": signature(self._key(row.webhook_id), message, moment, body),
        }
        outcome = self._poster.post(url, body, headers)
        self._save(row, outcome)
        return outcome.taken

    def _save(self, sent: DeliveryRow, outcome: Outcome) -> None:
        now = self._clock()
        with self._database.write() as session:
            webhook = session.get(WebhookRow, sent.webhook_id)
            row = session.get(DeliveryRow, sent.id)
            if webhook is None or row is None:
                return
            row.tries, row.answer, row.updated = row.tries + 1, outcome.text, now
            webhook.answer, webhook.answered = outcome.text, now
            if outcome.taken:
                row.state = "delivered"
            elif outcome.gone or row.tries >= TRIES:
                row.state = "dead"
                log.warning("webhook %s: %s is given up: %s", webhook.id, row.id, outcome.text)
            else:
                row.due = now + self._pause(row.tries)
            if outcome.gone:
                webhook.state = "gone"


def _fields(webhook: str, event: dict[str, Any], now: float) -> dict[str, Any]:
    return {
        "webhook_id": webhook,
        "event": event,
        "tries": 0,
        "due": now,
        "state": "pending",
        "answer": "",
        "created": now,
        "updated": now,
    }


def _message(webhook: str, event: dict[str, Any], now: float) -> DeliveryRow:
    return DeliveryRow(**_fields(webhook, event, now))

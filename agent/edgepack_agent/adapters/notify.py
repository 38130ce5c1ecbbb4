"""Tells systemd how it goes: READY, STATUS, WATCHDOG. Silent where there is no systemd."""

import contextlib
import os
import socket

__all__ = ["Notifier"]


class Notifier:
    """Speaks the sd_notify protocol to the socket in NOTIFY_SOCKET."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "").replace("@", "\0", 1)
        microseconds = int(os.environ.get("WATCHDOG_USEC", "0") or 0)
        self.watchdog_s: float | None = microseconds / 2e6 or None
        """Seconds between two signs of life; None if nobody waits for them."""

    def ready(self) -> None:
        """Say that the agent has started."""
        self._send("READY=1")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Show TEXT in `systemctl status`."""
        self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """Say that the agent ends on purpose."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel,
        ):
            channel.sendto(text.encode(), self._address)

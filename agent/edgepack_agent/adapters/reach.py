"""Tries the way to a broker or fleet step by step: name, TCP, TLS, certificate, MQTT.

Every step has its own error, because each is another person's to mend. Publishes nothing.
"""

import contextlib
import socket
import ssl
import time

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from edgepack.errors import IntegrityError, UnreachableError

__all__ = ["log_in", "reach"]

STEP_S = 5.0
_ALERT_S = 0.3
"""With TLS 1.3 a server refuses a certificate only after the handshake."""


def reach(host: str, port: int, tls: ssl.SSLContext) -> None:
    """Connect to HOST and PORT over TLS, and hang up.

    Raises:
        UnreachableError: no such name (`dns`), nobody listens (`tcp`), or no TLS (`tls`).
        IntegrityError: its certificate is not trusted (`server_certificate`), or ours is not
            taken (`client_certificate`).
    """
    place = f"{host}:{port}"
    try:
        found = socket.create_connection((host, port), STEP_S)
    except socket.gaierror as error:
        raise UnreachableError(
            f"there is no address for {host}", why=str(error.strerror),
            fix="check the name server of this site", reason="dns",
        ) from error  # fmt: skip
    except OSError as error:
        raise UnreachableError(
            f"{place} takes no connections", why=error.strerror or str(error),
            fix="check cable, route and firewall, and that it runs there", reason="tcp",
        ) from error  # fmt: skip
    with found:
        _shake_hands(found, host, place, tls)


def _shake_hands(found: socket.socket, host: str, place: str, tls: ssl.SSLContext) -> None:
    try:
        with tls.wrap_socket(found, server_hostname=host) as secure:
            secure.settimeout(_ALERT_S)
            with contextlib.suppress(TimeoutError):
                secure.recv(1)
    except ssl.SSLCertVerificationError as error:
        raise IntegrityError(
            f"{place} does not have a certificate of our fleet",
            why=error.verify_message or str(error),
            fix="somebody may be in between; or the fleet has a new CA: enrol anew",
            reason="server_certificate",
        ) from error
    except ssl.SSLError as error:
        alert = error.reason or str(error)
        if "ALERT" not in alert and "CERTIFICATE" not in alert.upper():
            raise _no_tls(place, alert) from error
        raise IntegrityError(
            f"{place} does not take the certificate of this device", why=alert,
            fix="it has ended or was revoked: ask the operator", reason="client_certificate",
        ) from error  # fmt: skip
    except OSError as error:
        raise _no_tls(place, error.strerror or str(error)) from error


def _no_tls(place: str, why: str) -> UnreachableError:
    return UnreachableError(
        f"{place} does not speak TLS with us", why=why,
        fix="is it the broker's TLS port? something in between may not let it through",
        reason="tls",
    )  # fmt: skip


def log_in(device: str, host: str, port: int, tls: ssl.SSLContext) -> None:
    """Log in to the broker as DEVICE and leave. Nobody else may be logged in under this name.

    Raises:
        UnreachableError: the broker refuses (`auth`), or does not answer.
    """
    answers: list[ReasonCode] = []
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=device,
        protocol=paho.MQTTv311,
        reconnect_on_failure=False,
    )
    client.connect_timeout = STEP_S
    client.tls_set_context(tls)
    client.on_connect = lambda _c, _d, _f, reason, _p: answers.append(reason)
    deadline = time.monotonic() + STEP_S
    try:
        client.connect(host, port)
        while not answers and time.monotonic() < deadline and client.loop(0.2) == 0:
            continue
    except OSError as error:
        raise _refused(host, port, error.strerror or str(error)) from error
    finally:
        client.disconnect()
        client.loop(0.1)
    if not answers or answers[0].is_failure:
        raise _refused(host, port, str(answers[0]) if answers else "no answer")


def _refused(host: str, port: int, why: str) -> UnreachableError:
    return UnreachableError(
        f"{host}:{port} does not let this device log in", why=why,
        fix="ask the operator whether this device is still enrolled", reason="auth",
    )  # fmt: skip

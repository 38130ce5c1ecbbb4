"""Tells people of alerts: by mail, and on a topic of the site's broker. Decides nothing."""

import json
import smtplib
import ssl
from collections.abc import Mapping
from email.message import EmailMessage
from email.utils import make_msgid
from pathlib import Path
from typing import Any

from edgepack_fleet.core.alert_rules import Mail, MqttTopic

__all__ = ["publish", "send_mail"]

TIMEOUT_S = 20.0


def send_mail(channel: Mail, subject: str, text: str) -> None:
    """Send a mail to everybody of CHANNEL.

    Raises:
        OSError: the server cannot be reached, or does not take it; what `smtplib` raises is one.
    """
    message = EmailMessage()
    message["From"], message["To"] = channel.sender, ", ".join(channel.to)
    message["Subject"], message["Message-ID"] = subject, make_msgid(domain="edgepack")
    message.set_content(text)
    context = _context(channel.ca_file)
    if channel.tls == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(
            channel.host, channel.port, timeout=TIMEOUT_S, context=context
        )
    else:
        server = smtplib.SMTP(channel.host, channel.port, timeout=TIMEOUT_S)
    with server:
        if channel.tls == "starttls":
            server.starttls(context=context)
        if channel.user:
            server.login(channel.user, _password(channel.password_file))
        server.send_message(message)


def publish(channel: MqttTopic, body: Mapping[str, Any]) -> None:
    """Publish BODY as JSON on the topic of CHANNEL, at least once.

    Raises:
        OSError: the broker cannot be reached, or does not take it.
    """
    from paho.mqtt import MQTTException
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    client = Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
    if channel.tls:
        client.tls_set_context(_context(channel.ca_file))
    if channel.user:
        client.username_pw_set(channel.user, _password(channel.password_file))
    client.connect_timeout = TIMEOUT_S
    client.connect(channel.host, channel.port)
    client.loop_start()
    try:
        sent = client.publish(channel.topic, json.dumps(body), qos=1)
        sent.wait_for_publish(TIMEOUT_S)
        if not sent.is_published():
            raise TimeoutError("the broker has not taken it")
    except (MQTTException, RuntimeError, ValueError) as error:
        raise OSError(str(error)) from error
    finally:
        client.disconnect()
        client.loop_stop()


def _context(ca_file: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file or None)


def _password(path: str) -> str:
    return Path(path).read_text().strip() if path else ""

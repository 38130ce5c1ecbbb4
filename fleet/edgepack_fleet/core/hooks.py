"""How a webhook's message is signed, when it is tried again, and where it may go. Sends nothing."""

import base64
import hashlib
import hmac
import ipaddress
from urllib.parse import SplitResult, urlsplit

from edgepack.errors import UsageError

__all__ = ["check_url", "is_loopback", "may_reach", "pause_s", "secret_text", "signature"]

FIRST_S, LONGEST_S = 5.0, 3600.0
TRANSLATED = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16")))
"""IPv6 networks that lead to IPv4 addresses, private ones too."""


def secret_text(key: bytes) -> str:
    """Return KEY as receivers keep it."""
    return "whsec_" + base64.b64encode(key).decode()


def signature(key: bytes, message: str, moment: int, body: bytes) -> str:
    """Return the signature of BODY, of the MESSAGE with that id at MOMENT (Unix seconds)."""
    signed = f"{message}.{moment}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def pause_s(tries: int, chance: float) -> float:
    """Return the seconds until the next try after so many TRIES; CHANCE is from 0 to 1.

    Receivers that were down together are not all called again in the same moment.
    """
    return min(LONGEST_S, FIRST_S * 2.0 ** (min(tries, 30) - 1)) * (0.5 + chance / 2)


def check_url(url: str) -> SplitResult:
    """Return URL in parts.

    Raises:
        UsageError: it is not one that we post to (`bad_url`).
    """
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname or "", parts.port
        host.encode("idna")
    except (ValueError, UnicodeError) as error:
        raise _bad("it cannot be read") from error
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise _bad("it has characters that no URL has")
    if not host or parts.fragment:
        raise _bad("it has no host, or a fragment")
    if parts.username is not None or parts.password is not None:
        raise _bad("a password in it would be shown to everybody who lists webhooks")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise _bad("only https, or http to this machine itself")
    return parts


def is_loopback(host: str) -> bool:
    """Say whether HOST is this machine by its own name, not by what a name server says."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def may_reach(address: str, *, loopback: bool, private: bool) -> bool:
    """Say whether a message may go to the IP ADDRESS.

    Args:
        address: IPv4 or IPv6.
        loopback: The URL says that it is this machine.
        private: Addresses of private networks are allowed.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_loopback or loopback:
        return ip.is_loopback and loopback
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip.is_reserved:
        return False
    if any(ip in network for network in TRANSLATED if network.version == ip.version):
        return False
    return ip.is_global or (private and ip.is_private)


def _bad(why: str) -> UsageError:
    return UsageError("not a URL for a webhook", why=why, reason="bad_url")

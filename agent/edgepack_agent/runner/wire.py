"""What supervisor and runner say to each other: one JSON object a line. Opens no socket.

Commands go down, events come up. The supervisor speaks plain objects; the runner reads them as
the structs below, so that a wrong command is refused and not half understood.

    check    {exam: path | null, min_score}        -> checked {golden, exam} | failed
    admit    {token: text | null, max_per_s: number | null, grpc: address | null}
    accept   {}                                    -> accepting
    drain    {}                                    -> drained
    sources  {sources: [{name, source, every_s}]}
    mirror   {per_s}, with a socket: show the runner at its other end what is answered
    shadow   {}, with a socket: answer what is shown there, and compare
    observe  {labels: [text] | null, frames: [need, of], snapshots: {...} | null}
    stop     {}                                    -> the process ends

Unasked come `loaded`, `failed` (the last word of a runner) and a `beat` about once a second
while the inference thread makes progress; once told to `observe`, also `seen`, a
`core.sightings.Seen` of a camera.
"""

import ipaddress
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec

from edgepack.errors import IntegrityError

__all__ = [
    "KINDS",
    "MAX_LINE",
    "Accept",
    "Admit",
    "Check",
    "Command",
    "Drain",
    "Handed",
    "Lines",
    "Mirror",
    "Observe",
    "Shadow",
    "Snapshots",
    "Source",
    "Sources",
    "Stop",
    "kind_of",
    "read_command",
    "read_event",
    "write_line",
]

MAX_LINE = 256 * 1024
"""Bytes one line may have; a peer that sends more is broken."""
KINDS = ("rtsp", "rtsps", "v4l2", "file", "test")

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1000)]


class _Command(msgspec.Struct, frozen=True, tag_field="cmd", forbid_unknown_fields=True):
    """What the supervisor asks for."""


class Check(_Command, frozen=True, tag="check"):
    """Answer the golden vectors and, if there is one, the exam."""

    exam: str | None = None
    min_score: float = 0.0


class Admit(_Command, frozen=True, tag="admit"):
    """Ask this of whoever comes, from now on."""

    token: str | None = None
    """What requests over TCP must bear; None: nothing."""
    max_per_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Requests a second over each kind of socket; None: as many as can be answered."""
    grpc: str | None = None
    """`127.0.0.1:PORT` to take gRPC at; None: it is not taken."""


class Accept(_Command, frozen=True, tag="accept"):
    """Take connections and feed sources."""


class Drain(_Command, frozen=True, tag="drain"):
    """Take no more of either, answer what is under way, stay loaded."""


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where images come from besides requests."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    source: str
    """`dir:PATH`, `rtsp://...`, `v4l2:/dev/video0`, `file:CLIP` or `test:pattern`."""
    every_s: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """Seconds between two looks for new images in a folder."""
    fps: Annotated[float, msgspec.Meta(gt=0, le=240)] | None = None
    """Frames a second that are looked at, at most; None: all there is time for."""
    roi: tuple[Share, Share, Share, Share] | None = None
    """Left, top, right and bottom of what is looked at, as shares of the picture."""
    mask: tuple[tuple[tuple[Share, Share], ...], ...] = ()
    """Polygons that are blacked out before the model sees the picture, as shares of it."""

    def __post_init__(self) -> None:
        """Refuse an area without pixels.

        Raises:
            ValueError: `roi` or a polygon of `mask` is none.
        """
        if self.roi and not (self.roi[0] < self.roi[2] and self.roi[1] < self.roi[3]):
            raise ValueError("roi is [left, top, right, bottom], left < right, top < bottom")
        if any(len(polygon) < 3 for polygon in self.mask):
            raise ValueError("a polygon of mask has three corners or more")

    def path(self) -> str | None:
        """Return the path that is opened for it; None: it needs none."""
        kind, (before, _, after) = kind_of(self.source), self.source.partition(":")
        if kind == "test":
            return None
        if kind.startswith("rtsp"):
            return "/etc/resolv.conf" if _has_name(self.source) else None
        return after if kind != "dir" or before == "dir" else self.source


def kind_of(source: str) -> str:
    """Return what SOURCE is, one of `KINDS`; `dir` for a folder."""
    kind = source.partition(":")[0].lower()
    return kind if kind in KINDS else "dir"


def _has_name(url: str) -> bool:
    """Say whether the host of URL has to be looked up."""
    try:
        ipaddress.ip_address(urlsplit(url).hostname or "")
    except ValueError:
        return True
    return False


class Sources(_Command, frozen=True, tag="sources"):
    """Feed from exactly these from now on."""

    sources: tuple[Source, ...] = ()


class Mirror(_Command, frozen=True, tag="mirror"):
    """Show what is answered from now on over the socket that comes with this, until it closes."""

    per_s: Annotated[float, msgspec.Meta(gt=0)]
    """Inputs a second, at most."""


class Shadow(_Command, frozen=True, tag="shadow"):
    """Answer what is shown over the socket that comes with this, for nobody, and compare."""


class Snapshots(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Pictures that are kept when a label begins to be seen; see `runner.album`."""

    directory: str
    keep: Count
    """Files of each camera."""
    max_mb: Annotated[float, msgspec.Meta(gt=0)]
    """MiB of each camera."""
    labels: tuple[str, ...] | None = None
    """None: all."""


class Observe(_Command, frozen=True, tag="observe"):
    """Say what cameras see, of those that begin to be watched from now on."""

    labels: tuple[str, ...] | None = None
    """None: all."""
    frames: tuple[Count, Count] = (3, 5)
    """See `core.sightings.Rule`: `need` and `of`."""
    snapshots: Snapshots | None = None
    """None: no picture is kept."""


class Stop(_Command, frozen=True, tag="stop"):
    """Finish what is under way and end."""


Handed = Mirror | Shadow
"""What a descriptor comes with."""
Command = Check | Admit | Accept | Drain | Sources | Observe | Stop | Handed
_COMMANDS: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)
_EVENTS = msgspec.json.Decoder(dict[str, Any])


class Lines:
    """Cuts a stream of bytes into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the lines that DATA completes, without their ends.

        Raises:
            IntegrityError: a line is longer than `MAX_LINE`.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if max(map(len, (*lines, self._rest))) > MAX_LINE:
            raise _bad(f"a line has more than {MAX_LINE} bytes")
        yield from lines


def read_command(line: bytes) -> Command:
    """Return the command in LINE.

    Raises:
        IntegrityError: it is none.
    """
    try:
        return _COMMANDS.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(str(error)) from error


def read_event(line: bytes) -> dict[str, Any]:
    """Return the event in LINE.

    Raises:
        IntegrityError: it is none.
    """
    try:
        event = _EVENTS.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(str(error)) from error
    if not isinstance(event.get("evt"), str):
        raise _bad("the event has no name")
    return event


def write_line(message: dict[str, Any]) -> bytes:
    """Return MESSAGE as a line."""
    return msgspec.json.encode(message) + b"\n"


def _bad(why: str) -> IntegrityError:
    return IntegrityError("the control channel carries nonsense", why=why, reason="bad_command")

"""The agent's configuration: YAML, every key checked. It has no keys about models.

data_dir: /var/lib/edgepack        # models, journal, identity
run_dir: /run/edgepack             # sockets
listen: 127.0.0.1:9000             # local inference API over TCP beside the socket; null: none
api:                               # who may ask it
  token: true                      # over TCP, ask for the token in DATA_DIR/api-token
  max_per_s: null                  # requests a second over each kind of socket; null: any number
  grpc: null                       # 127.0.0.1:9001: the same over gRPC, with the same token
poll_s: 300                        # seconds between two looks for a job, if no hint comes
telemetry:                         # what is told about inference
  level: metrics                   # off | health | metrics
  interval_s: 30
  max_kb_per_day: null             # then telemetry waits, and is added up; null: any number
drift:                             # is what the model sees and says still what it was built for?
  watch: true
  min_count: 1000                  # decisions compared with the baseline at a time, at least
  min_s: 3600                      # seconds they come from: near frames are hardly different
  psi: 0.1                         # stability index (PSI), less what chance gives, that matters
  p: 0.001                         # how often a window may be far by chance
  windows: 2                       # windows in a row that make an alarm
sources:                           # pictures that come by themselves
  - {name: door, source: "rtsp://user:password@camera/stream", fps: 5}
  - {name: hall, source: "v4l2:/dev/video0", roi: [0, 0.2, 1, 1], mask: [[[0, 0], [1, 0], [0, 1]]]}
  - {name: inbox, source: "dir:/srv/inbox", every_s: 1}    # also file:CLIP.mp4 and test:pattern
cameras:                           # what holds for all of them
  max_fps: null                    # frames a second that are looked at; null: `fps` of each
sightings:                         # when a camera is said to see a label
  labels: null                     # of these labels only; null: of all; []: nothing is told
  frames: [3, 5]                   # seen in 3 of 5 frames it begins, in none of 5 it ends
snapshots:                         # annotated pictures of what begins to be seen, on the device
  keep: 0                          # of each camera, in DATA_DIR/snapshots/CAMERA; 0: none are taken
  max_mb: 50                       # of each camera
  labels: null                     # of these labels only; null: of all in `sightings`
  publish: false                   # tell the broker of `events` each one, too
heat: {limit_c: 85, resume_c: 75}  # from the one on cameras are slowed down; limit_c null: never
threads: null                      # threads of the runtime; null: the runtime chooses
device: CPU                        # CPU | GPU | NPU | AUTO (GPU or else CPU): where models run
hint: latency                      # latency | throughput: what OpenVINO tunes for
runtimes: [openvino, onnx]         # allowed runtimes, best first; []: all that are installed
allow_local_install: false         # take approved bundles from a person at the device
events:                            # a broker of the site, e.g. that of Home Assistant
  broker: null                     # mqtt://127.0.0.1:1883 or mqtts://host; null: none is told
  username: null
  password_file: null
  prefix: edgepack
  discovery_prefix: homeassistant
update:                            # when updates are welcome, and what is asked of a new model
  windows: [{days: [sat, sun], from: "22:00", to: "04:00", zone: Europe/Berlin}]   # []: always
  min_battery: 20                  # percent below which they wait for power; 0: they do not
  swap: beside                     # beside | stop_first: end the old model before the new is loaded
  shadow: null                     # compare both on the same inputs before the new one answers:
                                   #   {seconds: 60, min_samples: 20, min_agreement: 0.95,
                                   #    max_p95_ratio: 1.2, deadline_s: 600, on_missing: pass,
                                   #    per_s: 5}; a job of the fleet may say it, too
  max_p95_ratio: null              # a new model may be this much slower than the old; null: any
broker: null                       # HOST:PORT, if the broker is reached by another way
transfer:                          # how the files of a model come
  via: auto                        # auto | mqtt | https; auto: HTTPS if offered, else MQTT
  metered: wait                    # wait | patches | allow: what may come by a link that costs
  metered_interfaces: ["wwan*"]    # interfaces that do, beside those the system says so of
  max_kbps: null                   # kilobits per second that files may take; null: all there is
  min_kbps: 8                      # slower than this over two minutes counts as no link; 0: never
  delta:                           # fetch patches to the files that are here
    use: true
    fallback: full                 # full | never: may a file come whole if a patch did not work?
    memory_mb: 128                 # of the process that applies a patch
remote:                            # what the fleet may do from afar, beside updates
  answers: [doctor, logs, measure] # what it may ask; with telemetry.level off: nothing
  settings: true                   # may it set some keys that no file here names?
log_level: info                    # debug | info | warning | error
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edgepack.errors import UsageError
from edgepack.messages import Shadow, Window
from edgepack.requests import KINDS, Kind
from edgepack.settings import check_settings
from edgepack_agent.core.delta import Fallback
from edgepack_agent.core.drift import Rule
from edgepack_agent.core.heat import HeatRule
from edgepack_agent.core.telemetry import Level
from edgepack_agent.core.window import zone
from edgepack_agent.runner.wire import Count, Source
from edgepack_targets.interface import Device, Hint

__all__ = [
    "ApiConfig",
    "CamerasConfig",
    "Config",
    "DeltaConfig",
    "DriftConfig",
    "EventsConfig",
    "HeatConfig",
    "Launch",
    "RemoteConfig",
    "ShadowConfig",
    "SightingsConfig",
    "SnapshotsConfig",
    "TelemetryConfig",
    "TransferConfig",
    "UpdateConfig",
    "address",
    "as_path",
    "overlaid",
    "pinned_of",
]

_Labels = Annotated[
    tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=100)], ...],
    msgspec.Meta(max_length=100),
]
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings about one concept. Every key has a default; `__post_init__` may refuse values."""


class TelemetryConfig(_Section, frozen=True, kw_only=True):
    """What is told about inference, and how often."""

    level: Level = "metrics"
    interval_s: _Seconds = 30.0
    max_kb_per_day: Annotated[float, msgspec.Meta(gt=0)] | None = None


class DriftConfig(_Section, frozen=True, kw_only=True):
    """What counts as drift; see `core.drift`."""

    watch: bool = True
    min_count: Annotated[int, msgspec.Meta(ge=100, le=10**9)] = 1000
    min_s: Annotated[float, msgspec.Meta(ge=0, le=30 * 86400)] = 3600.0
    psi: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.1
    p: Annotated[float, msgspec.Meta(gt=0, le=0.5)] = 0.001
    windows: Annotated[int, msgspec.Meta(ge=1, le=100)] = 2

    def rule(self) -> Rule | None:
        """Return it as the rule; None: nothing is watched."""
        return (
            Rule(self.min_count, self.min_s, self.psi, self.p, self.windows) if self.watch else None
        )


class HeatConfig(_Section, frozen=True, kw_only=True):
    """When cameras are slowed down; see `core.heat`. Degrees Celsius."""

    limit_c: Annotated[float, msgspec.Meta(ge=20, le=150)] | None = 85.0
    resume_c: Annotated[float, msgspec.Meta(ge=0, le=150)] = 75.0

    def __post_init__(self) -> None:
        """Refuse a rule without a way back.

        Raises:
            ValueError: `resume_c` is not below `limit_c`.
        """
        if self.limit_c is not None and self.resume_c >= self.limit_c:
            raise ValueError(f"resume_c {self.resume_c:g} is not below limit_c {self.limit_c:g}")

    def rule(self) -> HeatRule | None:
        """Return it as the rule; None: cameras are left alone."""
        return None if self.limit_c is None else HeatRule(self.limit_c, self.resume_c)


class DeltaConfig(_Section, frozen=True, kw_only=True):
    """Whether patches are fetched instead of whole files, and what if one does not work."""

    use: bool = True
    fallback: Fallback = "full"
    memory_mb: Annotated[int, msgspec.Meta(ge=96, le=65536)] = 128


class TransferConfig(_Section, frozen=True, kw_only=True):
    """How the files of a model come."""

    via: Literal["auto", "mqtt", "https"] = "auto"
    metered: Literal["wait", "patches", "allow"] = "wait"
    metered_interfaces: tuple[str, ...] = ("wwan*", "wwp*", "ppp*", "rmnet*")
    max_kbps: Annotated[float, msgspec.Meta(gt=0)] | None = None
    min_kbps: Annotated[float, msgspec.Meta(ge=0)] = 8.0
    delta: DeltaConfig = DeltaConfig()

    def __post_init__(self) -> None:
        """Refuse a cap that every download would be too slow under.

        Raises:
            ValueError: `max_kbps` is not above `min_kbps`.
        """
        if self.max_kbps is not None and self.max_kbps <= self.min_kbps:
            raise ValueError(f"max_kbps {self.max_kbps:g} is not above min_kbps {self.min_kbps:g}")


class ApiConfig(_Section, frozen=True, kw_only=True):
    """Who may ask the inference API, and how often."""

    token: bool = True
    max_per_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    grpc: str | None = None


class EventsConfig(_Section, frozen=True, kw_only=True):
    """A broker of the site that is told how the device is."""

    broker: str | None = None
    username: str | None = None
    password_file: str | None = None
    prefix: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}(?![\s\S])")] = "edgepack"
    discovery_prefix: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}(?![\s\S])")] = (
        "homeassistant"
    )

    def __post_init__(self) -> None:
        """Refuse half a login.

        Raises:
            ValueError: there is a user without a password, or the other way round.
        """
        if (self.username is None) != (self.password_file is None):
            raise ValueError("username and password_file belong together")


class ShadowConfig(Shadow, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a new model is compared with the old one where the fleet's job does not say."""


class CamerasConfig(_Section, frozen=True, kw_only=True):
    """What holds for every camera."""

    max_fps: Annotated[float, msgspec.Meta(gt=0, le=240)] | None = None

    def fps(self, own: float | None) -> float | None:
        """Return the frames a second that are looked at of a camera whose OWN limit is this."""
        return min((limit for limit in (own, self.max_fps) if limit is not None), default=None)


class SightingsConfig(_Section, frozen=True, kw_only=True):
    """When a camera is said to see a label; see `core.sightings`."""

    labels: _Labels | None = None
    frames: tuple[Count, Count] = (3, 5)

    def __post_init__(self) -> None:
        """Refuse what no label could reach.

        Raises:
            ValueError: more frames are asked for than are looked at.
        """
        if self.frames[0] > self.frames[1]:
            raise ValueError("frames is [need, of], need not above of")


class SnapshotsConfig(_Section, frozen=True, kw_only=True):
    """Annotated pictures of what begins to be seen."""

    keep: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    max_mb: Annotated[float, msgspec.Meta(ge=1, le=10240)] = 50.0
    labels: _Labels | None = None
    publish: bool = False

    def __post_init__(self) -> None:
        """Refuse to publish pictures that are not taken.

        Raises:
            ValueError: `publish` without `keep`.
        """
        if self.publish and not self.keep:
            raise ValueError("publish needs keep above 0")


class UpdateConfig(_Section, frozen=True, kw_only=True):
    """When updates are welcome, and what is asked of a new model."""

    windows: tuple[Window, ...] = ()
    min_battery: Annotated[float, msgspec.Meta(ge=0, le=100)] = 20.0
    swap: Literal["beside", "stop_first"] = "beside"
    shadow: ShadowConfig | None = None
    max_p95_ratio: Annotated[float, msgspec.Meta(gt=0)] | None = None

    def __post_init__(self) -> None:
        """Refuse windows in zones that are not known here.

        Raises:
            ValueError: there is one.
        """
        for window in self.windows:
            try:
                zone(window.zone)
            except UsageError as error:
                raise ValueError(f"{error.what}: {error.why}; {error.fix}") from error


class RemoteConfig(_Section, frozen=True, kw_only=True):
    """What the fleet may do from afar, beside updates."""

    answers: tuple[Kind, ...] = KINDS
    settings: bool = True


class Config(_Section, frozen=True, kw_only=True):
    """The settings of one agent; the defaults are those of the system service."""

    data_dir: Path = Path("/var/lib/edgepack")
    run_dir: Path = Path("/run/edgepack")
    listen: str | None = None
    api: ApiConfig = ApiConfig()
    poll_s: _Seconds = 300.0
    telemetry: TelemetryConfig = TelemetryConfig()
    drift: DriftConfig = DriftConfig()
    sources: tuple[Source, ...] = ()
    cameras: CamerasConfig = CamerasConfig()
    sightings: SightingsConfig = SightingsConfig()
    snapshots: SnapshotsConfig = SnapshotsConfig()
    heat: HeatConfig = HeatConfig()
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    device: Device = "CPU"
    hint: Hint = "latency"
    runtimes: tuple[str, ...] = ()
    allow_local_install: bool = False
    events: EventsConfig = EventsConfig()
    update: UpdateConfig = UpdateConfig()
    broker: str | None = None
    transfer: TransferConfig = TransferConfig()
    remote: RemoteConfig = RemoteConfig()
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def identity_dir(self) -> Path:
        """Where the device's identity is."""
        return self.data_dir / "identity"

    @property
    def control_socket(self) -> Path:
        """Where the command line reaches the agent."""
        return self.run_dir / "control.sock"

    @property
    def snapshots_dir(self) -> Path:
        """Where the pictures of cameras are."""
        return self.data_dir / "snapshots"

    @property
    def api_token(self) -> Path:
        """Where the token for the inference API over TCP is."""
        return self.data_dir / "api-token"

    @property
    def api_socket(self) -> Path:
        """Where local programs reach the inference API."""
        return self.run_dir / "infer.sock"


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What `edgepack-agent run` hands to the agent that it becomes."""

    config: Config
    file: str | None = None
    """Where the settings come from; None: the system's place."""
    said: tuple[str, ...] = ()
    """Dotted keys that files say something about; the fleet cannot set them."""


def address(text: str) -> tuple[str, int]:
    """Return host and port of TEXT, `HOST:PORT`.

    Raises:
        ValueError: it is not that.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def as_path(kind: type[Any], value: Any) -> Any:
    """Return VALUE as a KIND that msgspec does not know: a path.

    Raises:
        ValueError: it is none.
    """
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"{value!r} is not a path")


def pinned_of(values: Mapping[str, Any], said: Collection[str]) -> tuple[str, ...]:
    """Return the keys of VALUES that are among those that files here have SAID something about."""
    return tuple(key for key in values if key in said)


def overlaid(config: Config, values: Mapping[str, Any], said: Collection[str]) -> Config:
    """Return CONFIG with VALUES, by dotted key, where files here have not SAID otherwise.

    Raises:
        UsageError: they cannot be set, or do not go with the rest (reason `bad_settings`).
    """
    check_settings(values)
    plain = msgspec.to_builtins(config, enc_hook=str)
    for key, value in values.items():
        if key not in said:
            *path, name = key.split(".")
            section = plain
            for step in path:
                section = section[step]
            section[name] = value
    try:
        return msgspec.convert(plain, Config, dec_hook=as_path)
    except msgspec.ValidationError as error:
        raise UsageError(
            "the settings do not go with this device's own", why=str(error), reason="bad_settings"
        ) from error

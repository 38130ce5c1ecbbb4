"""The agent's configuration: one YAML file, every key checked. It has no keys about models.

data_dir: /var/lib/edgepack        # models, journal, identity
run_dir: /run/edgepack             # sockets
listen: 127.0.0.1:9000             # local inference API over TCP beside the socket; null: none
poll_s: 300                        # seconds between two looks for a job, if no hint comes
telemetry: {level: metrics, interval_s: 30}    # level: off | health | metrics
sources: [{name: door, source: "dir:/srv/door", every_s: 1}]
threads: null                      # threads of the runtime; null: the runtime chooses
runtimes: [openvino, onnx]         # allowed runtimes, best first; []: all that are installed
allow_local_install: false         # take approved bundles from a person at the device
broker: null                       # HOST:PORT, if the broker is reached by another way
log_level: info                    # debug | info | warning | error
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from edgepack.errors import UsageError
from edgepack_agent.core.telemetry import Level
from edgepack_agent.runner.wire import Source

__all__ = ["DEFAULT_PATH", "Config", "TelemetryConfig", "address", "load_config"]

DEFAULT_PATH = Path("/etc/edgepack/agent.yaml")
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]
_LOOPBACK = ("127.0.0.1", "localhost")


class TelemetryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is told about inference, and how often."""

    level: Level = "metrics"
    interval_s: _Seconds = 30.0


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one agent; the defaults are those of the system service."""

    data_dir: Path = Path("/var/lib/edgepack")
    run_dir: Path = Path("/run/edgepack")
    listen: str | None = None
    poll_s: _Seconds = 300.0
    telemetry: TelemetryConfig = TelemetryConfig()
    sources: tuple[Source, ...] = ()
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    runtimes: tuple[str, ...] = ()
    allow_local_install: bool = False
    broker: str | None = None
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
    def api_socket(self) -> Path:
        """Where local programs reach the inference API."""
        return self.run_dir / "infer.sock"


def load_config(path: Path | None) -> Config:
    """Return the settings in PATH; without a path, the system's file or the defaults.

    Raises:
        UsageError: the file cannot be read, or a key in it is unknown or wrong.
    """
    if path is None:
        if not DEFAULT_PATH.exists():
            return Config()
        path = DEFAULT_PATH
    try:
        document: Any = yaml.safe_load(path.read_text())
        config = msgspec.convert(document or {}, Config, dec_hook=_as_path)
        _check(config)
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"cannot read {path}", why=why, reason="no_config") from error
    except (yaml.YAMLError, msgspec.ValidationError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not a valid configuration",
            why=" ".join(str(error).split()),
            fix="`edgepack-agent config check --help` lists the keys",
            reason="bad_config",
        ) from error
    return config


def address(text: str) -> tuple[str, int]:
    """Return host and port of TEXT, `HOST:PORT`.

    Raises:
        ValueError: it is not that.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def _check(config: Config) -> None:
    if config.listen is not None and address(config.listen)[0] not in _LOOPBACK:
        raise ValueError(f"listen: {config.listen} is not on 127.0.0.1, and the API has no login")
    if config.broker is not None:
        address(config.broker)


def _as_path(kind: type[Any], value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"{value!r} is not a path")

"""From YAML files to `Config`, every key checked; what is wrong is said in the file's own words.

Nothing of this stays in the memory of a running agent: `edgepack-agent run` reads, then becomes it.
"""

import difflib
import re
from pathlib import Path
from typing import Any, get_args

import msgspec

from edgepack.errors import UsageError
from edgepack_agent.adapters.config_files import Files, bad_config, read_files
from edgepack_agent.config import Config, address, as_path
from edgepack_agent.core.announcement import plain
from edgepack_agent.core.layers import Layer

__all__ = ["DEFAULT_PATH", "load_config", "read_config", "validate"]

DEFAULT_PATH = Path("/etc/edgepack/agent.yaml")
_LOOPBACK = ("127.0.0.1", "localhost")


def load_config(path: Path | None) -> Config:
    """Return the settings in PATH and `conf.d` beside it; without a path, those of the system.

    Raises:
        UsageError: a file cannot be read, or a key in it is unknown or wrong.
    """
    return read_config(path)[0]


def read_config(path: Path | None) -> tuple[Config, Files]:
    """Return the settings as `load_config` does, and the files they come from.

    Raises:
        UsageError: as there.
    """
    files = read_files(path or DEFAULT_PATH, required=path is not None)
    return validate(files.layer), files


def validate(layer: Layer) -> Config:
    """Return LAYER as settings.

    Raises:
        UsageError: a key is unknown or wrong; the message names file and line.
    """
    try:
        config = msgspec.convert(layer.plain(), Config, dec_hook=as_path)
        _check(config)
    except msgspec.ValidationError as error:
        raise _refusal(layer, str(error)) from error
    return config


def _check(config: Config) -> None:
    for key, text in (("listen", config.listen), ("api.grpc", config.api.grpc)):
        if text is not None and _host(key, text) not in _LOOPBACK:
            raise _wrong(key, f"{text} is not on 127.0.0.1, and the API has no TLS")
    if config.broker is not None:
        _host("broker", config.broker)
    names = [plain(source.name) for source in config.sources]
    if len(set(names)) < len(names):
        raise _wrong("sources", "two have the same name, or one that differs in signs only")


def _host(key: str, text: str) -> str:
    try:
        return address(text)[0]
    except ValueError as error:
        raise _wrong(key, str(error)) from error


def _wrong(key: str, why: str) -> msgspec.ValidationError:
    return msgspec.ValidationError(f"{why} - at `$.{key}`")


def _refusal(layer: Layer, message: str) -> UsageError:
    """Say what msgspec has found wrong in the words of the file, and where it is."""
    what, _, place = message.partition(" - at `$")
    path = [int(n) if n else key for key, n in re.findall(r"\.(\w+)|\[(\d+)\]", place)]
    unknown = re.search(r"unknown field `(.*)`", what)
    if unknown is None:
        where = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in path)
        return bad_config(layer.at(path).origin, f"`{where.lstrip('.')}` is wrong", what)
    keys = _keys(path)
    close = difflib.get_close_matches(unknown[1], keys, n=1)
    return bad_config(
        layer.at([*path, unknown[1]]).origin,
        f"there is no key `{unknown[1]}` here",
        f"the keys are {', '.join(keys)}",
        f"did you mean `{close[0]}`?" if close else "",
    )


def _keys(path: list[str | int]) -> list[str]:
    """Return the keys of the section at PATH."""
    kind: Any = Config
    for step in path:
        if isinstance(step, str):
            kind = next(f.type for f in msgspec.structs.fields(kind) if f.name == step)
        kind = next((k for k in (kind, *get_args(kind)) if hasattr(k, "__struct_fields__")), kind)
    return list(kind.__struct_fields__)

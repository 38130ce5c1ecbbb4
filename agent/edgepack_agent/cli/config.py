"""`edgepack-agent config check | show`: is the configuration right, and who said what."""

from pathlib import Path
from typing import Any

import click
import msgspec

from edgepack.cli import print_json
from edgepack.redact import redact
from edgepack_agent.adapters.config_files import Files
from edgepack_agent.config import Config
from edgepack_agent.settings import DEFAULT_PATH, read_config

__all__ = ["config"]

_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group()
def config() -> None:
    """Check and show the configuration."""


@config.command()
@_json
@click.pass_obj
def check(path: Path | None, as_json: bool) -> None:
    """Check the configuration files and say what is wrong with them.

    Reads agent.yaml, then conf.d/*.yaml beside it in the order of names: mappings are merged,
    everything else is replaced.

    Keys: data_dir, run_dir, listen (127.0.0.1:PORT or null), poll_s, telemetry {level:
    off|health|metrics, interval_s}, sources [{name, source, every_s}], threads, runtimes,
    allow_local_install, broker (HOST:PORT or null), log_level.
    """
    _, files = read_config(path)
    if as_json:
        print_json({"schema": "edgepack.agent.config-check/v1", "valid": True} | _names(files))
        return
    for file in files.read:
        click.echo(f"{file} is valid")
    if not files.read:
        click.echo(f"there is no {path or DEFAULT_PATH}: the defaults hold")
    _warn_of_ignored(files)


@config.command()
@_json
@click.pass_obj
def show(path: Path | None, as_json: bool) -> None:
    """Show every setting that holds, and the file and line that it comes from."""
    found, files = read_config(path)
    rows = _settings(found, files)
    if as_json:
        schema = {"schema": "edgepack.agent.config-show/v1"}
        print_json(schema | _names(files) | {"settings": rows})
        return
    for key, row in rows.items():
        origin = f"{row['file']}, line {row['line']}" if row["file"] else "default"
        told = msgspec.json.encode(row["value"]).decode()
        click.echo(f"{f'{key}: {told}':<48} # {origin}")
    _warn_of_ignored(files)


def _settings(found: Config, files: Files) -> dict[str, Any]:
    """Return value and origin of every setting by its dotted name."""
    origins = {name: leaf.origin for name, leaf in files.layer.leaves()}
    rows: dict[str, Any] = {}
    for name, value in _leaves("", msgspec.to_builtins(found, enc_hook=str)):
        origin = origins.get(name)
        rows[name] = {
            "value": _clean(value),
            "file": str(origin.file) if origin else None,
            "line": origin.line if origin else None,
        }
    return rows


def _leaves(name: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(name, value)]
    prefix = f"{name}." if name else ""
    return [leaf for key, below in value.items() for leaf in _leaves(f"{prefix}{key}", below)]


def _clean(value: Any) -> Any:
    """Return VALUE without the passwords that addresses of cameras may have."""
    if isinstance(value, dict):
        return {key: _clean(below) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(below) for below in value]
    return redact(value) if isinstance(value, str) else value


def _names(files: Files) -> dict[str, list[str]]:
    return {"files": [*map(str, files.read)], "ignored": [*map(str, files.ignored)]}


def _warn_of_ignored(files: Files) -> None:
    for file in files.ignored:
        click.echo(f"warning: {file} is not read: its name does not end in .yaml", err=True)

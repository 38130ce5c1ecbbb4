"""The YAML files of one configuration: `agent.yaml`, then `conf.d/*.yaml` beside it by name.

Knows no key. Every value keeps the line it was written on; a key that is written twice in one
file is refused, because YAML would silently take the last.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edgepack.errors import UsageError
from edgepack_agent.core.layers import Layer, Origin, merge

__all__ = ["Files", "bad_config", "read_files"]

DROP_INS = "conf.d"
MAX_VALUES = 10_000
"""A file with more is no configuration; a few aliases can stand for billions of values."""
_COLLECTIONS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


@dataclass(frozen=True, slots=True)
class Files:
    """What the files say together.

    Attributes:
        read: The files, in the order in which later ones win.
        ignored: What lies in `conf.d` and was not read, because it is not called `*.yaml`.
    """

    layer: Layer
    read: tuple[Path, ...]
    ignored: tuple[Path, ...]


def read_files(path: Path, *, required: bool) -> Files:
    """Read PATH and the files of `conf.d` beside it.

    Args:
        path: The main file.
        required: Whether it must exist.

    Raises:
        UsageError: a file cannot be read, or is not a YAML mapping without duplicates.
    """
    drop_ins, ignored = _drop_ins(path.parent / DROP_INS)
    main = [path] if required or path.exists() else []
    read = (*main, *drop_ins)
    layer = Layer({}, Origin(path, 1))
    for file in read:
        layer = merge(layer, _read(file))
    return Files(layer, read, ignored)


def bad_config(origin: Origin, what: str, why: str = "", fix: str = "") -> UsageError:
    """Return the error for a wrong setting at ORIGIN."""
    fix = fix or "`edgepack-agent config check --help` lists the keys"
    return UsageError(f"{origin}: {what}", why=why, fix=fix, reason="bad_config")


def _drop_ins(directory: Path) -> tuple[list[Path], tuple[Path, ...]]:
    try:
        found = sorted(directory.iterdir()) if directory.is_dir() else []
    except OSError as error:
        raise _unreadable(directory, error) from error
    visible = [path for path in found if path.is_file() and not path.name.startswith(".")]
    read = [path for path in visible if path.suffix == ".yaml"]
    return read, tuple(path for path in visible if path not in read)


def _read(path: Path) -> Layer:
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        if node is None:
            return Layer({}, Origin(path, 1))
        layer = _Reader(path).layer(node)
    except OSError as error:
        raise _unreadable(path, error) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _not_yaml(path, error) from error
    if not isinstance(layer.value, dict):
        raise bad_config(layer.origin, "the file is not a mapping (an `object`) of settings")
    return layer


class _Reader:
    """Turns the YAML nodes of one file into layers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._left = MAX_VALUES
        self._scalars = yaml.constructor.SafeConstructor()

    def layer(self, node: yaml.Node) -> Layer:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"more than {MAX_VALUES} values")
        origin = self._origin(node)
        if isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTIONS:
            raise bad_config(origin, f"{node.tag} is not allowed here")
        if isinstance(node, yaml.MappingNode):
            return Layer(self._mapping(node), origin)
        if isinstance(node, yaml.SequenceNode):
            return Layer([self.layer(below) for below in node.value], origin)
        return Layer(self._scalars.construct_object(node), origin)

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Layer]:
        found: dict[str, Layer] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, origin = self._key(key_node), self._origin(key_node)
            if key in found:
                raise bad_config(
                    origin, f"`{key}` is there twice", f"line {lines[key]} has it already"
                )
            value = self.layer(value_node)
            # Where the key stands is where a person looks.
            found[key], lines[key] = Layer(value.value, origin), origin.line
        return found

    def _key(self, node: yaml.Node) -> str:
        key: Any = self._scalars.construct_object(node)
        # YAML 1.1 reads `on:` and `off:` as booleans.
        return key if isinstance(key, str) else str(node.value)

    def _origin(self, node: yaml.Node) -> Origin:
        return Origin(self._path, node.start_mark.line + 1)


def _unreadable(path: Path, error: OSError) -> UsageError:
    why = error.strerror or str(error)
    return UsageError(f"cannot read {path}", why=why, reason="no_config")


def _not_yaml(path: Path, error: Exception) -> UsageError:
    mark = getattr(error, "problem_mark", None)
    origin = Origin(path, mark.line + 1 if mark else 1)
    why = "; ".join(itertools.islice(_reasons(error), 2))
    return bad_config(origin, "this is not YAML", why, "YAML indents with spaces; quote odd values")


def _reasons(error: Exception) -> Iterator[str]:
    if isinstance(error, yaml.MarkedYAMLError):
        yield from filter(None, (error.problem, error.context))
    else:
        yield " ".join(str(error).split())

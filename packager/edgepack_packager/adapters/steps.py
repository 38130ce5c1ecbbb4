"""Run steps, or take what an earlier build left in the cache. Knows no plan.

A cached step is found by what it was made from: the function, its arguments, the keys of the
steps before it, and the versions of tools and code. Its files are hashed again when used.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import edgepack_packager.workers
import edgepack_targets
from edgepack import canonical
from edgepack_packager.adapters.source import digest_tree
from edgepack_packager.adapters.worker import Interpreter, run_step

__all__ = ["Done", "Steps"]

CONVERTERS = (
    "onnx", "onnxruntime", "openvino", "nncf", "ai-edge-litert", "ai-edge-quantizer", "numpy",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Done:
    """A finished step: the files it wrote and what it said."""

    key: str
    out: Path
    result: dict[str, Any]


class Steps:
    """Where the steps of one build run.

    Args:
        work: Temporary directory of the build.
        cache: Directory of finished steps; None: nothing is kept.
        interpreters: By toolchain name; `host` is one of them.
        timeout_s: For each step.
        say: Called with a line of progress.
    """

    def __init__(
        self,
        work: Path,
        cache: Path | None,
        interpreters: Mapping[str, Interpreter],
        *,
        timeout_s: float,
        say: Callable[[str], None],
    ) -> None:
        self._work, self._cache = work, cache
        self._interpreters, self._timeout_s, self._say = interpreters, timeout_s, say
        self._tools = _tools()
        self._count = 0

    def run(
        self,
        toolchain: str,
        function: str,
        args: Mapping[str, Any],
        *,
        parents: Sequence[Done] = (),
        facts: Mapping[str, Any],
    ) -> Done:
        """Return FUNCTION's outcome, from the cache if it is there.

        Args:
            toolchain: Where it runs.
            function: `module.function` of the workers.
            args: Its arguments; paths in them are not part of what it is found by.
            parents: The steps whose files it reads.
            facts: What else decides its outcome: digests of files, settings.
        """
        key = self._key(toolchain, function, parents, facts)
        kept = self._kept(key)
        if kept:
            return kept
        out, result = self.fresh(toolchain, function, args)
        return Done(key, self._keep(key, out, result), result)

    def fresh(
        self, toolchain: str, function: str, args: Mapping[str, Any]
    ) -> tuple[Path, dict[str, Any]]:
        """Run FUNCTION now; return its directory and what it said."""
        self._count += 1
        out = self._work / f"{self._count:02d}-{function}"
        out.mkdir()
        where = self._interpreters[toolchain]
        said = run_step(where, function, args, out, timeout_s=self._timeout_s, say=self._say)
        return out, said

    def _key(
        self, toolchain: str, function: str, parents: Sequence[Done], facts: Mapping[str, Any]
    ) -> str:
        interpreter = self._interpreters[toolchain]
        made_from = {
            "step": function,
            "toolchain": [interpreter.name, str(interpreter.python)],
            "tools": self._tools,
            "parents": [parent.key for parent in parents],
            "facts": dict(facts),
        }
        return hashlib.sha256(canonical.dumps(made_from)).hexdigest()

    def _kept(self, key: str) -> Done | None:
        if self._cache is None:
            return None
        try:
            said = json.loads((self._cache / key / "step.json").read_text())
            out = self._cache / key / "out"
            return Done(key, out, said["result"]) if digest_tree(out) == said["sha256"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _keep(self, key: str, out: Path, result: dict[str, Any]) -> Path:
        """Copy OUT into the cache, all or nothing; without one, or without room, it stays."""
        if self._cache is None:
            return out
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".step-", dir=self._cache) as folder:
                shutil.copytree(out, Path(folder) / "step" / "out")
                said = {"result": result, "sha256": digest_tree(out)}
                (Path(folder) / "step" / "step.json").write_text(json.dumps(said))
                shutil.rmtree(self._cache / key, ignore_errors=True)
                (Path(folder) / "step").rename(self._cache / key)
        except OSError:
            # A full or read-only cache is no reason to fail: OUT itself is still there.
            return out
        return out


def _tools() -> list[str]:
    """Return what converts here: versions of the tools, digest of our own code."""
    found = {d.name: d.version for d in distributions() if d.name in CONVERTERS}
    homes = (edgepack_targets, edgepack_packager.workers)
    code = [_digest_code(Path(str(package.__file__)).parent) for package in homes]
    return [*(f"{name}=={version}" for name, version in sorted(found.items())), *code]


def _digest_code(home: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(home.rglob("*.py")):
        whole.update(path.read_bytes())
    return whole.hexdigest()

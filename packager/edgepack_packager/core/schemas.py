"""The published JSON Schemas of what `--json` prints, made from `documents`. Pure."""

from typing import Any

import msgspec

from edgepack_packager.core.documents import (
    Build,
    Compare,
    Doctor,
    Inspect,
    KeysCreated,
    Published,
    RepoCreated,
    Report,
    RunAnswer,
    Toolchains,
    Unpacked,
    Verified,
)
from edgepack_packager.core.repo_documents import Exported, RepoStatus, Revised, SignStatus
from edgepack_targets.measure import Benchmark

__all__ = ["DOCUMENTS", "document_schema", "json_schema"]

DRAFT = "https://json-schema.org/draft/2020-12/schema"
DOCUMENTS: dict[str, tuple[Any, str]] = {
    "build": (Build, "edgepack build"),
    "report": (Report, "edgepack build"),
    "run": (RunAnswer, "edgepack run"),
    "benchmark": (Benchmark, "edgepack benchmark, edgepack-agent benchmark"),
    "compare": (Compare, "edgepack compare"),
    "inspect": (Inspect, "edgepack inspect"),
    "verify": (Verified, "edgepack verify"),
    "unpack": (Unpacked, "edgepack unpack"),
    "doctor": (Doctor, "edgepack doctor"),
    "toolchains": (Toolchains, "edgepack toolchain install, edgepack toolchain list"),
    "keys": (KeysCreated, "edgepack keys create"),
    "repo": (RepoCreated, "edgepack repo init"),
    "publish": (Published, "edgepack repo publish"),
    "revision": (
        Revised,
        "edgepack repo revoke, edgepack repo rotate, edgepack repo refresh, edgepack repo merge",
    ),
    "repo-status": (RepoStatus, "edgepack repo status"),
    "sign-status": (SignStatus, "edgepack repo sign-request, edgepack repo sign"),
    "export": (Exported, "edgepack repo export"),
}
"""Every document by the name in its schema, and the commands that print it."""


def json_schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the document NAME."""
    return document_schema(name, DOCUMENTS[name][0])


def document_schema(name: str, kind: Any) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a document called NAME, of type KIND."""
    title = f"edgepack.{name}/v1"
    return {"$schema": DRAFT, "$id": f"{name}.schema.json", "title": title} | _inlined(
        msgspec.json.schema(kind)
    )


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Return SCHEMA with the document's own properties at the top, where readers look."""
    top = schema["$ref"].rpartition("/")[2]
    rest = {key: value for key, value in schema["$defs"].items() if key != top}
    own = {key: value for key, value in schema["$defs"][top].items() if key != "title"}
    return own | ({"$defs": rest} if rest else {})

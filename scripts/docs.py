"""Write the reference pages that are derived from the code; `--check` says which are stale."""

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
from api_page import api_document, api_page
from engine_page import engine_page, reasons_page

from edgepack import manifest, messages, requests
from edgepack.cli import root
from edgepack_agent import config
from edgepack_agent.cli import root as agent
from edgepack_agent.core.privacy import Privacy
from edgepack_fleet.simulation.scenario import Scenario
from edgepack_fleet.simulation.tally import Result
from edgepack_packager.core import schemas

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
AGENT_DOCUMENTS: dict[str, tuple[Any, str]] = {
    "agent.privacy": (Privacy, "edgepack-agent privacy"),
    "simulation": (Result, "edgepack simulate"),
}
"""Those of agent and fleet, as `schemas.DOCUMENTS`."""
DRAFT = "https://json-schema.org/draft/2020-12/schema"


def pages() -> dict[str, str]:
    """Return every generated page by file name."""
    return {
        "cli.md": cli_page(),
        "agent-config.md": config_page(),
        "update-engine.md": engine_page(),
        "reason-codes.md": reasons_page(),
        "manifest.schema.json": as_json(manifest.json_schema()),
        "messages.schema.json": as_json(messages_schema()),
        "agent-config.schema.json": as_json(config_schema()),
        "scenario.schema.json": as_json(schemas.document_schema("scenario", Scenario)),
        "documents.md": documents_page(),
        "rest-api.md": api_page(),
        "openapi.json": as_json(api_document()),
    } | {
        f"{name}.schema.json": as_json(schemas.document_schema(name, kind))
        for name, (kind, _) in (schemas.DOCUMENTS | AGENT_DOCUMENTS).items()
    }


def as_json(document: dict[str, Any]) -> str:
    """Return DOCUMENT as it is written to disk."""
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def messages_schema() -> dict[str, Any]:
    """Return the JSON Schema of every message, under `$defs`."""
    found = [getattr(of, name) for of in (messages, requests) for name in of.__all__]
    kinds = [k for k in found if isinstance(k, type) and issubclass(k, msgspec.Struct)]
    _, schemas = msgspec.json.schema_components(kinds)
    return {"$schema": DRAFT, "title": "edgepack messages v1", "$defs": {
        name: json.loads(json.dumps(schema).replace("#/components/schemas/", "#/$defs/"))
        for name, schema in schemas.items()
    }}  # fmt: skip


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema of the agent's configuration file; paths are strings in it."""
    fields = [
        (f.name, str, str(f.default)) if f.type is Path else (f.name, f.type, f.default)
        for f in msgspec.structs.fields(config.Config)
    ]
    plain = msgspec.defstruct("Config", fields, kw_only=True, forbid_unknown_fields=True)
    return {"$schema": DRAFT, "title": "edgepack agent.yaml"} | msgspec.json.schema(plain)


def config_page() -> str:
    """Return the reference of the agent's configuration, from what its module says."""
    told, _, keys = inspect.cleandoc(config.__doc__ or "").partition("\n\n")
    return (
        f"# Agent configuration\n\n{told}\n\n```yaml\n{keys}\n```\n\n"
        "The file is `/etc/edgepack/agent.yaml` unless `--config` names another. Then come the\n"
        "files `conf.d/*.yaml` beside it, in the order of their names: a key of a later file\n"
        "wins, mappings are merged to any depth, everything else, lists too, is replaced as a\n"
        "whole. An unknown key, or one that is twice in a file, is an error that names file and\n"
        "line.\n\n"
        "`edgepack-agent config check` checks the files, `config show` says what holds and which\n"
        "line of which file said so. Editors complete the keys with\n"
        "[agent-config.schema.json](agent-config.schema.json).\n"
    )


def documents_page() -> str:
    """Return the list of documents that commands print, each with its schema."""
    rows = "\n".join(
        f"| `edgepack.{name}/v1` | `{'`, `'.join(who.split(', '))}` "
        f"| [{name}.schema.json]({name}.schema.json) |"
        for name, (_, who) in (schemas.DOCUMENTS | AGENT_DOCUMENTS).items()
    )
    return (
        "# JSON documents\n\n"
        "Written by `scripts/docs.py` from the types in `edgepack_packager.core.documents` and\n"
        "`edgepack_agent.core`.\n\n"
        "With `--json` a command prints one document on standard output; progress and warnings go\n"
        "to standard error. Within `v1` keys are added, never renamed or taken away: skip\n"
        "what you do not know. What was not measured is null.\n\n"
        f"| schema | printed by | JSON Schema |\n|---|---|---|\n{rows}\n"
    )


def cli_page() -> str:
    """Return the reference of both commands, from their own help."""
    parts = ["# Command line", "", "Written by `scripts/docs.py` from the commands themselves.", ""]
    for name, command in (("edgepack", root), ("edgepack-agent", agent)):
        parts += list(sections(click.Context(command, info_name=name)))
    return "\n".join(parts).rstrip() + "\n"


def sections(context: click.Context) -> Iterator[str]:
    """Yield the help of the command of CONTEXT and of all below it."""
    context.terminal_width = context.max_content_width = 96
    yield from (f"## {context.command_path}", "", "```text", context.get_help().rstrip(), "```", "")
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            if command is not None:
                yield from sections(click.Context(command, info_name=name, parent=context))


def stale() -> list[str]:
    """Return the pages on disk that are not what the code says."""
    return [
        name
        for name, text in pages().items()
        if not (REFERENCE / name).exists() or (REFERENCE / name).read_text() != text
    ]


if __name__ == "__main__":
    if "--check" in sys.argv:
        found = stale()
        print(f"stale: {', '.join(found)}; run scripts/docs.py" if found else "docs: current")
        sys.exit(bool(found))
    for name, text in pages().items():
        (REFERENCE / name).write_text(text)

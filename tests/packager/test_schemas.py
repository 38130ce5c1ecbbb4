"""The published JSON Schemas are those of what the commands really print, key by key."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

import bundles
from digits import INPUT, digits_data, digits_folder
from edgepack import keys
from edgepack.cli import root
from edgepack_packager.core.schemas import DOCUMENTS, json_schema
from packager_rig import Done, OnnxDigits, Pair, edgepack
from slots import digits_bundle

DOCS = Path(__file__).resolve().parents[2] / "docs"
REFERENCE = DOCS / "reference"


def closed(schema: Any) -> Any:
    """Return SCHEMA so that a key it does not name is an error."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    return found | ({"additionalProperties": False} if "properties" in schema else {})


def check(name: str, document: Any) -> None:
    """Check DOCUMENT against the schema in the documentation; it may hold nothing else."""
    manifest = json.loads((REFERENCE / "manifest.schema.json").read_text())
    registry = Registry().with_resource(
        "manifest.schema.json", Resource.from_contents(manifest)
    )  # fmt: skip
    published = json.loads((REFERENCE / f"{name}.schema.json").read_text())
    assert document["schema"] == f"edgepack.{name}/v1"
    for schema in (published, closed(copy.deepcopy(published))):
        Draft202012Validator.check_schema(schema)
        errors = Draft202012Validator(schema, registry=registry).iter_errors(document)
        assert [f"{list(e.absolute_path)}: {e.message}" for e in errors] == []


def printed(done: Done, code: int = 0) -> Any:
    assert done.code == code, done.err
    return done.document


@pytest.mark.parametrize("name", DOCUMENTS)
def test_published_schemas_are_those_of_the_types(name: str) -> None:
    assert json.loads((REFERENCE / f"{name}.schema.json").read_text()) == json_schema(name)
    assert f"({name}.schema.json)" in (REFERENCE / "documents.md").read_text()


def test_build_and_report(onnx_builds: Pair) -> None:
    check("build", printed(onnx_builds.first))
    reports = sorted((onnx_builds.home / "one").glob("digits-*-*.report.json"))
    assert reports
    for path in reports:
        check("report", json.loads(path.read_text()))


def test_build_with_a_failure(digits: OnnxDigits, tmp_path: Path) -> None:
    done = edgepack(
        "build", digits.model, "--target", "onnx", "--unsigned", "--json", "--max-size-mb",
        "0.001", cwd=tmp_path,
    )  # fmt: skip
    said = printed(done, 6)
    assert said["failed"][0]["reason"] == "max_size"
    check("build", said)


def test_run_on_tensors_and_on_pictures(tmp_path: Path, onnx_builds: Pair) -> None:
    np.savez(tmp_path / "x.npz", **{INPUT: digits_data()[1].head(2).inputs})
    words = ("run", digits_bundle(), "--json")
    tensors = edgepack(*words, "--input", "x.npz", "--out", "y.npz", cwd=tmp_path)
    check("run", printed(tensors))
    digits_folder(tmp_path / "pictures", 2)
    check("run", printed(edgepack(*words, "--source", "pictures", cwd=tmp_path)))


def test_benchmark_and_compare(tmp_path: Path) -> None:
    bundle = digits_bundle()
    words = ("benchmark", bundle, "--runs", "1", "--seconds", "0.01", "--json")
    check("benchmark", printed(edgepack(*words, cwd=tmp_path)))
    test = digits_data()[1].head(20)
    np.savez(tmp_path / "val.npz", **{INPUT: test.inputs, "labels": test.labels})
    done = edgepack("compare", bundle, bundle, "--data", "val.npz", "--json", cwd=tmp_path)
    check("compare", printed(done))


def test_looking_at_bundles(tmp_path: Path) -> None:
    bundle = bundles.write(tmp_path).path
    public = tmp_path / "key.pub.pem"
    public.write_bytes(keys.public_pem(bundles.KEY.public_key()))
    check("inspect", printed(edgepack("inspect", bundle, "--json", cwd=tmp_path)))
    verify = ("verify", bundle, "--key", public, "--json")
    check("verify", printed(edgepack(*verify, cwd=tmp_path)))
    check("unpack", printed(edgepack("unpack", bundle, "all", "--json", cwd=tmp_path)))
    public.write_bytes(keys.public_pem(bundles.OTHER_KEY.public_key()))
    check("verify", printed(edgepack(*verify, cwd=tmp_path), 3))


def test_keys_and_repository(tmp_path: Path) -> None:
    words = ("keys", "create", "publisher.pem", "--no-passphrase", "--json")
    check("keys", printed(edgepack(*words, cwd=tmp_path)))
    init = ("repo", "init", "home", "--no-passphrase", "--json")
    check("repo", printed(edgepack(*init, cwd=tmp_path)))
    bundle = bundles.write(tmp_path).path
    publish = ("repo", "publish", bundle, "--repo", "there", "--home", "home", "--json")
    check("publish", printed(edgepack(*publish, cwd=tmp_path)))
    where = ("--repo", "there", "--home", "home", "--json")
    revoke = ("repo", "revoke", "digits", "--below", "1", "--on-revoked", "stop", *where)
    check("revision", printed(edgepack(*revoke, cwd=tmp_path)))
    check("export", printed(edgepack("repo", "export", "stick", *where, cwd=tmp_path)))
    check("repo-status", printed(edgepack("repo", "status", *where, cwd=tmp_path)))
    rotate = ("repo", "rotate", "--replace", "line-digits", "--replace", "timestamp", *where)
    check("revision", printed(edgepack(*rotate, cwd=tmp_path)))
    check("revision", printed(edgepack("repo", "refresh", "--within", "365", *where, cwd=tmp_path)))
    ask = ("repo", "sign-request", "ask.json", "--root", *where)
    check("sign-status", printed(edgepack(*ask, cwd=tmp_path)))
    sign = ("repo", "sign", "ask.json", "--key", "home/keys/root-1.pem", "--yes", "--json")
    signed = edgepack(*sign, "--root", "home/metadata/1.root.json", cwd=tmp_path)
    check("sign-status", printed(signed))
    merge = ("repo", "merge", signed.document["request"], "ask.json", *where)
    check("revision", printed(edgepack(*merge, cwd=tmp_path)))


def test_toolchains_and_doctor(tmp_path: Path) -> None:
    check("toolchains", printed(edgepack("toolchain", "list", "--json", cwd=tmp_path)))
    check("doctor", printed(edgepack("doctor", "--json", cwd=tmp_path)))


# -- help


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command of the packager below GROUP."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if name == "fleet" or command is None or command.hidden:
            continue
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name)


def find(words: tuple[str, ...]) -> click.Command:
    command: click.Command = root
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found
        command = found
    return command


@pytest.mark.parametrize("words", list(commands(root)), ids=" ".join)
def test_every_command_has_an_example_and_a_page(words: tuple[str, ...]) -> None:
    name = " ".join(("edgepack", *words))
    said = find(words).help or ""
    assert "Example:" in said
    assert re.search(rf"^ +{name}( |$)", said, re.MULTILINE), f"{name}: no example of its own"
    assert f"## {name}\n" in (REFERENCE / "cli.md").read_text()


@pytest.mark.parametrize("words", list(commands(root)), ids=" ".join)
def test_what_prints_json_has_a_schema(words: tuple[str, ...]) -> None:
    name = " ".join(("edgepack", *words))
    flags = {option for param in find(words).params for option in param.opts}
    if "--json" in flags and words != ("demo",):
        assert name in {w for _, who in DOCUMENTS.values() for w in who.split(", ")} or (
            f"`{name}`" in (REFERENCE / "documents.md").read_text()
        )

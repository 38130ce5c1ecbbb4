"""`edgepack inspect`, `verify`, `unpack` and `keys create`, as a person or a script calls them."""

import json
import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import bundles
from edgepack import keys
from edgepack.bundle import BundleInfo, open_bundle, write_bundle
from edgepack.cli import root, run_command
from edgepack.decoders import Softmax
from edgepack.manifest import Calibration, Metrics, Preprocess, Provenance

EDGEPACK = [sys.executable, "-c", "from edgepack.cli import main; main()"]


@dataclass
class Result:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class Edgepack:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Result:
        """Run the command in this process, exactly as its entry point does."""
        code = 0
        try:
            run_command(root, [str(argument) for argument in arguments])
        except SystemExit as leave:
            code = int(leave.code or 0)
        out, err = self._capsys.readouterr()
        assert "Traceback" not in err
        return Result(code, out, err)


@pytest.fixture
def edgepack(capsys: pytest.CaptureFixture[str]) -> Edgepack:
    return Edgepack(capsys)


@pytest.fixture
def signed(tmp_path: Path) -> BundleInfo:
    return bundles.write(tmp_path)


@pytest.fixture
def public(tmp_path: Path) -> Path:
    path = tmp_path / "publisher.pub.pem"
    path.write_bytes(keys.public_pem(bundles.KEY.public_key()))
    return path


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "words",
    [
        "build", "inspect", "verify", "unpack", "run", "benchmark", "keys create",
        "toolchain install", "repo init", "repo publish",
    ],
)  # fmt: skip
def test_help_has_an_example_that_fits_a_terminal(
    edgepack: Edgepack, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = edgepack(*words.split(), "--help").out.splitlines()
    assert f"      edgepack {words} " in lines[lines.index("  Example:") + 1]
    assert [line for line in lines if len(line) > 80] == []


def test_inspect_shows_what_a_person_wants_to_know(edgepack: Edgepack, signed: BundleInfo) -> None:
    result = edgepack("inspect", signed.path)
    assert result.code == 0
    for fact in (
        "digits@1.0.0", signed.digest, "int8", "onnx >= 1.23", "image", "1 x 8 x 8 x 1", "NHWC",
        "scores", "model/model.onnx", f"{signed.size_bytes:,}", "not checked", "top1",
    ):  # fmt: skip
        assert fact in result.out


def test_inspect_shows_where_a_model_comes_from_and_what_it_lost(
    edgepack: Edgepack, tmp_path: Path
) -> None:
    digest = "c" * 64
    path = bundles.write(
        tmp_path,
        preprocess=Preprocess(input="image", color="gray", scale=16.0),
        postprocess=Softmax(output="scores", top_k=3),
        calibration=Calibration(method="minmax", samples=128, dataset_digest=digest),
        metrics=Metrics(
            name="top1", reference=0.981, this=0.9755, drop=0.0055, samples=360,
            dataset_digest=digest,
        ),
        provenance=Provenance(source_sha256=digest, source_format="keras", steps=("convert", "x")),
        license="Apache-2.0",
    ).path  # fmt: skip
    out = edgepack("inspect", path).out
    for fact in (
        "gray", "x / 16", "softmax of scores, activation none, top k 3", "minmax, 128 samples",
        "0.9810 -> 0.9755",
        f"keras, sha256 {digest}", "convert -> x", "Apache-2.0",
    ):  # fmt: skip
        assert fact in out


def test_inspect_as_json_is_the_manifest_and_what_surrounds_it(
    edgepack: Edgepack, signed: BundleInfo
) -> None:
    found = edgepack("inspect", signed.path, "--json").json()
    assert found["schema"] == "edgepack.inspect/v1"
    assert found["digest"] == signed.digest
    assert (found["size_bytes"], found["model_bytes"]) == (signed.size_bytes, signed.model_bytes)
    key_id = keys.key_id(bundles.KEY.public_key())
    assert found["signature"] == {"signed": True, "key_id": key_id}
    assert found["manifest"]["labels"] == list("0123456789")


def test_inspect_says_that_a_bundle_is_not_signed(edgepack: Edgepack, tmp_path: Path) -> None:
    path = bundles.write(tmp_path, key=None).path
    found = edgepack("inspect", path, "--json").json()
    assert found["signature"] == {"signed": False, "key_id": None}
    assert "none" in edgepack("inspect", path).out


def test_names_in_a_bundle_do_not_drive_the_terminal(edgepack: Edgepack, tmp_path: Path) -> None:
    path = bundles.write(tmp_path, labels=("\x1b]0;owned\x07", "[red]cat[/red]")).path
    out = edgepack("inspect", path).out
    assert "\x1b" not in out
    assert "[red]cat[/red]" in out


def test_verify_says_who_signed(edgepack: Edgepack, signed: BundleInfo, public: Path) -> None:
    result = edgepack("verify", signed.path, "--key", public)
    assert result.code == 0
    assert signed.digest in result.out
    found = edgepack("verify", signed.path, "--key", public, "--json").json()
    assert found["schema"] == "edgepack.verify/v1"
    assert found["verified"] is True
    assert found["digest"] == signed.digest


@pytest.mark.parametrize("at", [0, 200, -1, -30_000])
def test_verify_exits_3_for_a_changed_byte(
    edgepack: Edgepack, signed: BundleInfo, public: Path, at: int
) -> None:
    flip(signed.path, at)
    result = edgepack("verify", signed.path, "--key", public)
    assert (result.code, result.out) == (3, "")
    assert result.err.startswith("error: ")
    found = edgepack("verify", signed.path, "--key", public, "--json")
    assert found.code == 3
    assert found.json()["verified"] is False
    assert found.json()["error"]["code"] == 3


def test_verify_exits_3_for_another_key(
    edgepack: Edgepack, signed: BundleInfo, tmp_path: Path
) -> None:
    other = keys.create_keypair(tmp_path / "other.pem", None)
    result = edgepack("verify", signed.path, "--key", other, "--json")
    assert result.code == 3
    assert result.json()["error"]["reason"] == "wrong_key"


def test_verify_exits_3_for_an_unsigned_bundle(
    edgepack: Edgepack, tmp_path: Path, public: Path
) -> None:
    path = bundles.write(tmp_path, key=None).path
    result = edgepack("verify", path, "--key", public, "--json")
    assert result.code == 3
    assert result.json()["error"]["reason"] == "unsigned"


@pytest.mark.parametrize("command", ["inspect", "verify", "unpack"])
@pytest.mark.parametrize(("content", "code"), [(None, 2), (b"", 3), (b"no bundle", 3)])
def test_a_missing_or_corrupt_file_is_one_clear_error(
    edgepack: Edgepack,
    tmp_path: Path,
    public: Path,
    command: str,
    content: bytes | None,
    code: int,
) -> None:
    path = tmp_path / "b.edgepack"
    if content is not None:
        path.write_bytes(content)
    more = {"inspect": [], "verify": ["--key", public], "unpack": [tmp_path / "out"]}[command]
    result = edgepack(command, path, *more)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_a_key_that_cannot_be_read_is_a_usage_error(
    edgepack: Edgepack, signed: BundleInfo, tmp_path: Path
) -> None:
    assert edgepack("verify", signed.path, "--key", tmp_path / "none.pem").code == 2
    assert edgepack("verify", signed.path, "--key", signed.path).code == 2
    assert edgepack("verify", signed.path).code == 2


def test_benchmark_reads_golden_inputs_as_strictly_as_any(
    edgepack: Edgepack, signed: BundleInfo
) -> None:
    said = edgepack("benchmark", signed.path)
    assert (said.code, said.out) == (2, "")
    assert "the golden file" in said.err
    assert "cannot be read" in said.err


def test_unpack_writes_the_files_as_signed(
    edgepack: Edgepack, signed: BundleInfo, tmp_path: Path
) -> None:
    result = edgepack("unpack", signed.path, tmp_path / "new" / "tree", "--json")
    assert result.json()["schema"] == "edgepack.unpack/v1"
    with open_bundle(signed.path) as bundle:
        assert sorted(bundle.paths()) == result.json()["files"]
        for path in bundle.paths():
            assert (tmp_path / "new/tree" / path).read_bytes() == bundle.read(path)
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["tree"]
    assert (tmp_path / "new/tree").stat().st_mode & 0o777 == 0o755


def test_unpack_flat_is_for_embedding(
    edgepack: Edgepack, signed: BundleInfo, tmp_path: Path
) -> None:
    assert edgepack("unpack", signed.path, tmp_path / "flat", "--flat").code == 0
    names = {path.name for path in (tmp_path / "flat").iterdir()}
    assert names == {"model.onnx", "labels.txt", "model.json"}


def test_unpack_flat_writes_labels_that_only_the_manifest_holds(
    edgepack: Edgepack, tmp_path: Path
) -> None:
    files = bundles.sources(tmp_path / "sources")
    del files["labels.txt"]
    path = write_bundle(tmp_path, bundles.manifest(labels=("cat", "dög")), files).path
    assert edgepack("unpack", path, tmp_path / "flat", "--flat").code == 0
    assert (tmp_path / "flat/labels.txt").read_text(encoding="utf-8") == "cat\ndög\n"


def test_unpack_flat_refuses_to_mix_up_files(edgepack: Edgepack, tmp_path: Path) -> None:
    files = bundles.sources(tmp_path / "sources")
    files["assets/model.onnx"] = files["labels.txt"]
    path = write_bundle(tmp_path, bundles.manifest(), files).path
    assert edgepack("unpack", path, tmp_path / "flat", "--flat").code == 2
    assert not (tmp_path / "flat").exists()


def test_unpack_takes_an_empty_directory_and_no_other(
    edgepack: Edgepack, signed: BundleInfo, tmp_path: Path
) -> None:
    (tmp_path / "tree").mkdir()
    assert edgepack("unpack", signed.path, tmp_path / "tree").code == 0
    before = sorted(tmp_path.rglob("*"))
    result = edgepack("unpack", signed.path, tmp_path / "tree")
    assert (result.code, result.out) == (2, "")
    assert edgepack("unpack", signed.path, signed.path).code == 2
    assert edgepack("unpack", signed.path, signed.path / "below-a-file").code == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_keys_create_makes_a_pair_that_signs_and_verifies(
    edgepack: Edgepack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPACK_PASSPHRASE", "secret")
    made = edgepack("keys", "create", tmp_path / "me.pem", "--json").json()
    assert made["schema"] == "edgepack.keys/v1"
    assert made["encrypted"] is True
    assert made["public"] == str(tmp_path / "me.pub.pem")
    info = bundles.write(tmp_path, key=keys.load_private(tmp_path / "me.pem"))
    found = edgepack("verify", info.path, "--key", made["public"], "--json").json()
    assert found["key_id"] == made["key_id"]


def test_keys_create_never_overwrites(edgepack: Edgepack, tmp_path: Path) -> None:
    path = tmp_path / "me.pem"
    assert edgepack("keys", "create", path, "--no-passphrase").code == 0
    before = path.read_bytes()
    assert edgepack("keys", "create", path, "--no-passphrase").code == 2
    assert path.read_bytes() == before


def test_keys_create_without_a_terminal_needs_the_passphrase_elsewhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [*EDGEPACK, "keys", "create", tmp_path / "me.pem"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "EDGEPACK_PASSPHRASE" in done.stderr
    assert not list(tmp_path.iterdir())


def test_keys_create_asks_twice_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [*EDGEPACK, "keys", "create", str(tmp_path / "me.pem")]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs,
                          start_new_session=True) as process:  # fmt: skip
        os.close(theirs)
        said = b""
        for _ in range(2):
            while b": " not in said[said.rfind(b"\n") + 1 :]:
                said += os.read(ours, 1000)
            os.write(ours, b"top secret\n")
            said += os.read(ours, 1000)
        assert process.wait(timeout=60) == 0
    os.close(ours)
    assert b"top secret" not in said
    keys.load_private(tmp_path / "me.pem", lambda: b"top secret")

"""Signed directories: by us, by the reference implementation, and by nobody who may."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

import bundles
from edgepack import keys, oms
from edgepack.bundle import open_bundle
from edgepack.errors import IntegrityError, UnsupportedError, UsageError
from edgepack_packager.adapters.signed_tree import verify_tree
from edgepack_packager.core.model_signature import read_signature
from fuzz import almost, json_values, refusal

EDGEPACK = Path(sys.executable).with_name("edgepack")
THEIRS = Path(sys.executable).with_name("model_signing")
PUBLIC = bundles.KEY.public_key()
FILES = {"weights.bin": b"w" * 3000, "sub/config.json": b"{}", "README.md": b"about"}


@pytest.fixture
def public(tmp_path: Path) -> Path:
    path = tmp_path / "publisher.pub.pem"
    path.write_bytes(keys.public_pem(PUBLIC))
    return path


@pytest.fixture
def private(tmp_path: Path) -> Path:
    path = tmp_path / "publisher.pem"
    clear = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(bundles.KEY.private_bytes(serialization.Encoding.PEM, form, clear))
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory of files that nobody has signed yet."""
    for name, content in FILES.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "tree"


def run(*words: str | Path) -> int:
    environment = os.environ | {"OTEL_SDK_DISABLED": "true"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr or words[0] == THEIRS, done.stderr
    return done.returncode


def statement(files: dict[str, bytes] = FILES, algorithm: str = "sha256") -> dict[str, Any]:
    """Return what another tool would state of FILES."""
    digests = {name: hashlib.new(algorithm, data).hexdigest() for name, data in files.items()}
    root = hashlib.sha256(b"".join(map(bytes.fromhex, digests.values()))).hexdigest()
    return {
        "predicateType": "https://model_signing/signature/v1.0",
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "tree", "digest": {"sha256": root}}],
        "predicate": {
            "resources": [
                {"name": name, "digest": digest, "algorithm": algorithm}
                for name, digest in digests.items()
            ],
            "serialization": {
                "method": "files",
                "allow_symlinks": False,
                "hash_type": algorithm,
                "ignore_paths": ["model.sig", ".git", ".github"],
            },
        },
    }


def signed(payload: Any, key: ec.EllipticCurvePrivateKey = bundles.KEY) -> dict[str, Any]:
    """Return the document of another tool that signed PAYLOAD, with a random nonce."""
    data = json.dumps(payload, indent=2).encode()
    raw = key.sign(oms.authenticated(data), ec.ECDSA(hashes.SHA256()))
    return {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {
            "publicKey": {"hint": keys.key_id(key.public_key())},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(data).decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": base64.b64encode(raw).decode(), "keyid": ""}],
        },
    }


def put(tree: Path, document: Any) -> None:
    (tree / "model.sig").write_text(json.dumps(document))


def reason(tree: Path) -> str:
    with pytest.raises((IntegrityError, UnsupportedError)) as caught:
        verify_tree(tree, PUBLIC)
    return caught.value.reason


# -- with the reference implementation, in both directions


def test_the_reference_accepts_our_unpacked_bundle_and_refuses_a_changed_one(
    tmp_path: Path, public: Path
) -> None:
    bundle, out = bundles.write(tmp_path, model_bytes=2_000_000).path, tmp_path / "out"
    assert run(EDGEPACK, "unpack", bundle, out) == 0
    command = [THEIRS, "verify", "key", out, "--signature", out / "model.sig"]
    command += ["--public_key", public]
    assert run(*command) == 0
    assert run(EDGEPACK, "verify", out, "--key", public) == 0
    with (out / "model" / "model.onnx").open("r+b") as file:
        file.write(b"X")
    assert run(*command) != 0
    assert run(EDGEPACK, "verify", out, "--key", public) == 3


def test_we_accept_what_the_reference_signed_and_refuse_a_changed_one(
    tree: Path, public: Path, private: Path
) -> None:
    command = [THEIRS, "sign", "key", tree, "--private_key", private]
    assert run(*command, "--signature", tree / "model.sig") == 0
    assert run(EDGEPACK, "verify", tree, "--key", public) == 0
    (tree / "sub" / "config.json").write_text("[]")
    assert run(EDGEPACK, "verify", tree, "--key", public) == 3


def test_an_agent_does_not_take_what_the_reference_signed(tmp_path: Path, private: Path) -> None:
    """The lenient reader is for people: a bundle's own signature has one form."""
    with open_bundle(bundles.write(tmp_path).path) as bundle:
        bundle.extract(tmp_path / "out")
        digests = bundle.image.digests()
    (tmp_path / "out" / "model.sig").unlink()
    signature = tmp_path / "out" / "model.sig"
    command = [THEIRS, "sign", "key", tmp_path / "out", "--private_key", private]
    assert run(*command, "--signature", signature) == 0
    verify_tree(tmp_path / "out", PUBLIC)
    with pytest.raises(IntegrityError):
        oms.verify_files(signature.read_bytes(), digests, PUBLIC)


# -- what is right


def test_a_foreign_signature_over_these_files_is_accepted(tree: Path) -> None:
    put(tree, signed(statement()))
    assert verify_tree(tree, PUBLIC).digests.keys() == FILES.keys()


def test_blake2b_is_accepted(tree: Path) -> None:
    put(tree, signed(statement(algorithm="blake2b")))
    assert verify_tree(tree, PUBLIC).algorithm == "blake2b"


def test_verify_counts_the_files_of_a_directory(tree: Path, public: Path) -> None:
    put(tree, signed(statement()))
    command = [EDGEPACK, "verify", tree, "--key", public, "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert (found["verified"], found["files"], found["key_id"]) == (True, 3, keys.key_id(PUBLIC))
    assert "digest" not in found


def test_our_own_signature_is_accepted(tree: Path) -> None:
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    (tree / "model.sig").write_bytes(oms.sign_files(digests, bundles.KEY))
    verify_tree(tree, PUBLIC)


# -- the directory


def changed(tree: Path) -> None:
    (tree / "weights.bin").write_bytes(b"x" * 3000)


def extra(tree: Path) -> None:
    (tree / "sub" / "more").write_bytes(b"")


def missing(tree: Path) -> None:
    (tree / "README.md").unlink()


def renamed(tree: Path) -> None:
    (tree / "README.md").rename(tree / "readme.md")


@pytest.mark.parametrize("tamper", [changed, extra, missing, renamed])
def test_other_files_are_refused(tree: Path, tamper: Callable[[Path], None]) -> None:
    put(tree, signed(statement()))
    tamper(tree)
    assert reason(tree) == "digest_mismatch"


def git_folder(tree: Path) -> None:
    (tree / ".git").mkdir()
    (tree / ".git" / "evil").write_bytes(b"not covered by the reference")


def git_file(tree: Path) -> None:
    (tree / "sub" / ".GitAttributes").write_bytes(b"")


def link(tree: Path) -> None:
    (tree / "weights.bin").unlink()
    (tree / "weights.bin").symlink_to("/etc/hostname")


def linked_folder(tree: Path) -> None:
    shutil.move(tree / "sub", tree.parent / "elsewhere")
    (tree / "sub").symlink_to(tree.parent / "elsewhere")


def pipe(tree: Path) -> None:
    os.mkfifo(tree / "pipe")


@pytest.mark.parametrize("tamper", [git_folder, git_file, link, linked_folder, pipe])
def test_what_cannot_be_signed_is_refused(tree: Path, tamper: Callable[[Path], None]) -> None:
    put(tree, signed(statement()))
    tamper(tree)
    assert reason(tree) == "bad_tree"


def test_a_path_that_the_signature_exempts_is_refused(tree: Path) -> None:
    said = statement()
    said["predicate"]["serialization"]["ignore_paths"].append("sub/notes.txt")
    put(tree, signed(said))
    verify_tree(tree, PUBLIC)
    (tree / "sub" / "notes.txt").write_text("vouched for by nobody")
    assert reason(tree) == "digest_mismatch"


def test_a_deep_tree_ends_no_stack(tmp_path: Path) -> None:
    here = tmp_path / "deep"
    here.mkdir()
    try:
        top = os.open(here, os.O_RDONLY)
        for _ in range(1100):
            os.mkdir("d", dir_fd=top)
            top, before = os.open("d", os.O_RDONLY, dir_fd=top), top
            os.close(before)
        os.close(top)
        assert refusal(verify_tree, here, PUBLIC) == "unsigned"
    finally:
        # Neither pytest nor shutil can remove it.
        subprocess.run(["rm", "-rf", here], check=True)


def test_a_directory_without_a_signature(tree: Path) -> None:
    assert reason(tree) == "unsigned"


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        verify_tree(tmp_path / "nothing", PUBLIC)


# -- the signature


def test_another_key_is_refused(tree: Path) -> None:
    put(tree, signed(statement(), bundles.OTHER_KEY))
    assert reason(tree) == "wrong_key"
    forged = signed(statement(), bundles.OTHER_KEY)
    forged["verificationMaterial"]["publicKey"]["hint"] = keys.key_id(PUBLIC)
    put(tree, forged)
    assert reason(tree) == "bad_signature"


def said_with(change: Callable[[Any], None]) -> bytes:
    payload = statement()
    change(payload)
    return json.dumps(signed(payload)).encode()


def set_at(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(payload: Any) -> None:
        for key in path[:-1]:
            payload = payload[key]
        payload[path[-1]] = value

    return change


RESOURCE = ("predicate", "resources", 0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (set_at("_type", value="https://in-toto.io/Statement/v0.1"), "unsupported_statement"),
        (set_at("predicateType", value="https://slsa.dev/provenance/v1"), "unsupported_statement"),
        (set_at("predicateType", value="https://model_signing/v0"), "unsupported_statement"),
        (set_at("predicate", "serialization", "method", value="shards"), "unsupported_hash"),
        (set_at("predicate", "serialization", "hash_type", value="blake3"), "unsupported_hash"),
        (set_at("predicate", "serialization", "hash_type", value="blake2b"), "bad_signature"),
        (set_at(*RESOURCE, "algorithm", value="md5"), "bad_signature"),
        (set_at(*RESOURCE, "digest", value="0" * 64), "bad_signature"),
        (set_at(*RESOURCE, "digest", value="0" * 40), "bad_signature"),
        (set_at(*RESOURCE, "name", value="../weights.bin"), "bad_signature"),
        (set_at(*RESOURCE, "name", value="/weights.bin"), "bad_signature"),
        (set_at(*RESOURCE, "name", value="./weights.bin"), "bad_signature"),
        (set_at(*RESOURCE, "name", value="README.md"), "bad_signature"),
        (set_at("predicate", "resources", value=[]), "bad_signature"),
        (set_at("subject", value=[]), "bad_signature"),
        (set_at("subject", 0, "digest", "sha256", value="0" * 64), "bad_signature"),
    ],
)  # fmt: skip
def test_a_statement_with_another_meaning_is_refused(
    change: Callable[[Any], None], why: str
) -> None:
    assert refusal(read_signature, said_with(change), PUBLIC) == why


@pytest.mark.parametrize(
    "change",
    [
        set_at("mediaType", value="application/vnd.dev.sigstore.bundle+json;version=0.1"),
        set_at("dsseEnvelope", "payloadType", value="application/json"),
        set_at("dsseEnvelope", "signatures", value=[]),
        set_at("dsseEnvelope", "signatures", 0, "sig", value="AAAA"),
        lambda document: document["dsseEnvelope"]["signatures"].append({"sig": "AAAA"}),
    ],
)
def test_a_document_of_another_kind_is_refused(change: Callable[[Any], None]) -> None:
    document = signed(statement())
    change(document)
    assert refusal(read_signature, json.dumps(document).encode(), PUBLIC) == "bad_signature"


def test_a_doubled_key_is_refused() -> None:
    text = json.dumps(signed(statement()))
    doubled = text.replace('{"mediaType"', '{"mediaType": "x", "mediaType"', 1).encode()
    assert refusal(read_signature, doubled, PUBLIC) == "bad_signature"


@given(almost(signed(statement())).map(lambda d: json.dumps(d).encode()) | st.binary())
def test_any_document_is_read_or_refused(data: bytes) -> None:
    refusal(read_signature, data, PUBLIC)


@given(almost(statement()) | json_values)
def test_any_signed_statement_is_read_or_refused(payload: Any) -> None:
    refusal(read_signature, json.dumps(signed(payload)).encode(), PUBLIC)

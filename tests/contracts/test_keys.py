"""Publisher keys: made once, kept private, found where the order says, refused clearly."""

import base64
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from edgepack import keys
from edgepack.errors import UsageError
from fuzz import refusal


def never_asked() -> bytes:
    pytest.fail("the passphrase was asked for")


def test_a_key_is_made_encrypted_and_private(tmp_path: Path) -> None:
    public = keys.create_keypair(tmp_path / "new" / "me.pem", b"secret")
    private = tmp_path / "new" / "me.pem"
    assert public == tmp_path / "new" / "me.pub.pem"
    assert private.stat().st_mode & 0o777 == 0o600
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in private.read_bytes()
    loaded = keys.load_private(private, lambda: b"secret")
    assert keys.public_pem(loaded.public_key()) == public.read_bytes()
    assert keys.key_id(loaded.public_key()) == keys.key_id(keys.load_public(public))


def test_without_a_passphrase_nobody_is_asked(tmp_path: Path) -> None:
    keys.create_keypair(tmp_path / "me.pem", None)
    keys.load_private(tmp_path / "me.pem", never_asked)


def test_the_environment_is_asked_before_the_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.create_keypair(tmp_path / "me.pem", b"secret")
    monkeypatch.setenv("EDGEPACK_PASSPHRASE", "secret")
    keys.load_private(tmp_path / "me.pem", never_asked)


@pytest.mark.parametrize("existing", ["me.pem", "me.pub.pem"])
def test_an_existing_file_is_never_overwritten(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    with pytest.raises(UsageError, match="not overwritten") as caught:
        keys.create_keypair(tmp_path / "me.pem", None)
    assert caught.value.reason == "exists"
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [
        (existing, "precious")
    ]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "me.pem").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError):
        keys.create_keypair(tmp_path / "me.pem", None)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["me", "me.key", "me.pub.pem"])
def test_a_key_file_has_a_telling_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"NAME\.pem"):
        keys.create_keypair(tmp_path / name, None)


def test_an_empty_passphrase_is_not_taken_for_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="empty"):
        keys.create_keypair(tmp_path / "me.pem", b"")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="cannot write"):
        keys.create_keypair(tmp_path / "file" / "me.pem", None)


def test_a_wrong_passphrase_is_a_usage_error_that_does_not_repeat_it(tmp_path: Path) -> None:
    keys.create_keypair(tmp_path / "me.pem", b"secret")
    with pytest.raises(UsageError) as caught:
        keys.load_private(tmp_path / "me.pem", lambda: b"a wrong guess")
    assert caught.value.reason == "bad_key"
    assert "guess" not in caught.value.diagnostics()


@pytest.mark.parametrize("ask", [None, bytes])
def test_a_missing_passphrase_is_a_usage_error(tmp_path: Path, ask: type[bytes] | None) -> None:
    keys.create_keypair(tmp_path / "me.pem", b"secret")
    with pytest.raises(UsageError) as caught:
        keys.load_private(tmp_path / "me.pem", ask)
    assert caught.value.reason == "no_passphrase"
    assert "EDGEPACK_PASSPHRASE" in caught.value.fix


def _pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> tuple[bytes, bytes]:
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private, public


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()]
)
def test_only_p256_is_a_publisher_key(
    tmp_path: Path, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
) -> None:
    private, public = _pem(key)
    (tmp_path / "k.pem").write_bytes(private)
    (tmp_path / "k.pub.pem").write_bytes(public)
    with pytest.raises(UsageError, match="P-256"):
        keys.load_private(tmp_path / "k.pem")
    with pytest.raises(UsageError, match="P-256"):
        keys.load_public(tmp_path / "k.pub.pem")


def test_private_and_public_are_not_taken_for_each_other(tmp_path: Path) -> None:
    public = keys.create_keypair(tmp_path / "me.pem", None)
    with pytest.raises(UsageError, match="private key"):
        keys.load_private(public)
    with pytest.raises(UsageError, match="public key"):
        keys.load_public(tmp_path / "me.pem")


@pytest.mark.parametrize("load", [keys.load_private, keys.load_public])
@pytest.mark.parametrize("name", ["missing.pem", "."])
def test_a_key_file_that_cannot_be_read_is_a_usage_error(
    tmp_path: Path, load: type[object], name: str
) -> None:
    with pytest.raises(UsageError, match="cannot read the key file"):
        load(tmp_path / name)


@given(st.binary(max_size=300), st.sampled_from([b"PRIVATE KEY", b"ENCRYPTED PRIVATE KEY"]))
def test_any_bytes_are_no_key(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, label: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.pem"
    armoured = b"-----BEGIN %s-----\n%s\n-----END %s-----\n"
    for content in (body, armoured % (label, base64.b64encode(body), label)):
        path.write_bytes(content)
        assert refusal(keys.load_private, path, lambda: b"x") == "bad_key"
        assert refusal(keys.load_public, path) == "bad_key"


def test_the_key_is_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = keys.default_key()
    assert own == Path(os.environ["XDG_CONFIG_HOME"]) / "edgepack/publisher.pem"
    with pytest.raises(UsageError) as caught:
        keys.find_key(None)
    assert (caught.value.reason, caught.value.exit_code) == ("no_key", 2)
    assert f"edgepack keys create {own}" in caught.value.fix
    keys.create_keypair(own, None)
    assert keys.find_key(None) == own
    keys.create_keypair(tmp_path / "env.pem", None)
    monkeypatch.setenv("EDGEPACK_KEY", str(tmp_path / "env.pem"))
    assert keys.find_key(None) == tmp_path / "env.pem"
    keys.create_keypair(tmp_path / "option.pem", None)
    assert keys.find_key(tmp_path / "option.pem") == tmp_path / "option.pem"


def test_a_named_key_that_is_missing_is_not_replaced_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.create_keypair(keys.default_key(), None)
    with pytest.raises(UsageError, match="no key file"):
        keys.find_key(tmp_path / "missing.pem")
    monkeypatch.setenv("EDGEPACK_KEY", str(tmp_path / "missing.pem"))
    with pytest.raises(UsageError, match="no key file"):
        keys.find_key(None)


def test_without_a_config_setting_the_key_lives_below_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keys.default_key() == tmp_path / ".config/edgepack/publisher.pem"

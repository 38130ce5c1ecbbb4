"""Keys on a PKCS#11 token, with a real SoftHSM: they sign roots and lines, PINs stay secret."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgepack.errors import UsageError
from edgepack_packager.adapters.key_uris import import_key, is_uri, open_signer
from trust_rig import FACTS, World, line_of

MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
           "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so")  # fmt: skip
MODULE = next((path for path in MODULES if Path(path).exists()), "")
PIN = "384756"

pytestmark = pytest.mark.skipif(
    not MODULE or not shutil.which("softhsm2-util"), reason="softhsm2 is not installed"
)


@dataclass
class Token:
    """A token with two P-256 keys, 2 and 3."""

    label: str

    def uri(self, number: int) -> str:
        return f"hsm:{number}?label={self.label}"


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Token]:
    # The library reads its configuration once in a process.
    import pkcs11
    from pkcs11.util.ec import encode_named_curve_parameters

    place = tmp_path_factory.mktemp("softhsm")
    (place / "tokens").mkdir()
    (place / "softhsm2.conf").write_text(f"directories.tokendir = {place / 'tokens'}\n")
    patch = pytest.MonkeyPatch()
    patch.setenv("SOFTHSM2_CONF", str(place / "softhsm2.conf"))
    patch.setenv("PYKCS11LIB", MODULE)
    words = ["--init-token", "--free", "--label", "edgepack", "--pin", PIN, "--so-pin", "1234"]
    subprocess.run(["softhsm2-util", *words], check=True, capture_output=True)
    there = pkcs11.lib(MODULE).get_token(token_label="edgepack")
    with there.open(rw=True, user_pin=PIN) as session:
        curve = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
        parameters = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
        for number in (2, 3):
            parameters.generate_keypair(id=bytes([number]), store=True)
    yield Token("edgepack")
    patch.undo()


@pytest.fixture
def world(tmp_path: Path, token: Token, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("EDGEPACK_PIN", PIN)
    made = World(tmp_path)
    made.director.assign("cam-1", made.release())
    return made


def rotate_to(world: World, **places: str) -> None:
    from edgepack_packager.repository import revise
    from edgepack_packager.rotation import Rotation, rotated
    from edgepack_packager.standing import current_state

    state = current_state(world.home, world.published)
    names = {name.replace("_", "-"): place for name, place in places.items()}
    change = rotated(world.home, state, Rotation(names))
    revise(world.home, world.published, state, change, world.clock())


def test_root_and_line_keys_on_a_token(world: World, token: Token) -> None:
    client = world.device()
    client.approve(FACTS)
    rotate_to(world, root_1=token.uri(2), line_digits=token.uri(3))
    assert (world.path / "home" / "keys" / "root-1.uri").read_text() == token.uri(2) + "\n"
    assert not (world.path / "home" / "keys" / "root-1.pem").exists()
    # The line is now signed there, and the next root by it and one file.
    world.release("1.1.0")
    assert len(line_of(world).targets) == 2
    for name in ("root-3.pem",):
        (world.path / "home" / "keys" / name).unlink()
    world.rotate(again=["root"])
    assert world.home.root.version == 3
    assert client.approve(FACTS) is not None
    assert world.device("new").approve(FACTS) is None


def test_the_pin_is_asked_for_once_and_never_shown(
    world: World, token: Token, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("EDGEPACK_PIN")
    asked = []

    def ask() -> bytes:
        asked.append(1)
        return PIN.encode()

    key = import_key(token.uri(2), ask)
    signer = open_signer(token.uri(2), key, ask)
    for payload in (b"one", b"two"):
        key.verify_signature(signer.sign(payload), payload)
    assert len(asked) == 1
    assert PIN not in "".join(capfd.readouterr())


def test_a_wrong_pin(world: World, token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    rotate_to(world, line_digits=token.uri(3))
    monkeypatch.setenv("EDGEPACK_PIN", "000000")
    with pytest.raises(UsageError) as caught:
        world.release("1.2.0")
    assert caught.value.reason == "bad_key"
    assert "000000" not in caught.value.diagnostics()


@pytest.mark.parametrize("uri", ["hsm:7?label=edgepack", "hsm:2?label=none", "hsm:x"])
def test_a_key_that_is_not_there(token: Token, uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        import_key(uri, lambda: PIN.encode())
    assert caught.value.reason == "bad_key"


def test_other_schemes_go_the_same_way(world: World, token: Token) -> None:
    """No cloud is asked here: its library is missing, which is said, as for any unusable key."""
    key = import_key(token.uri(2), lambda: b"")
    for uri in ("awskms:alias/root", "gcpkms:projects/p/k", "azurekms://v/k", "hv:key", "zz:1"):
        assert is_uri(uri)
        with pytest.raises(UsageError) as caught:
            open_signer(uri, key, lambda: b"")
        assert caught.value.reason == "bad_key"
        with pytest.raises(UsageError) as caught:
            import_key(uri, lambda: b"")
        assert "--public" in caught.value.fix
    assert not is_uri("keys/root-1.pem")
    assert not is_uri("/abs/root-1.pem")

"""`edgepack repo`: a publisher's home, a repository in a directory, and what goes wrong."""

import hashlib
import json
import shutil
import stat
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

import bundles
from edgepack.cli import run_command
from edgepack.errors import IntegrityError, UsageError
from edgepack.keys import create_keypair, load_private, public_pem
from edgepack.metadata import MIN_EPOCH, MetadataDirectory, parse
from edgepack_agent.adapters.floors import Floors
from edgepack_agent.adapters.trust import DirectoryChannel, TrustClient
from edgepack_packager.adapters.published import DirectoryRepository
from edgepack_packager.adapters.publisher_home import PublisherHome
from edgepack_packager.cli.key_options import KeyOptions
from edgepack_packager.cli.repo import repo
from edgepack_packager.repository import Publication, PublishRequest, init, publish
from trust_rig import FACTS, START, Clock, no_passphrase, target_of


class Site:
    """A home and the directory it publishes to."""

    def __init__(self, path: Path, name: str = "home") -> None:
        self.path, self.clock, self.built = path, Clock(), 0
        self.place = path / "repo"
        self.metadata = MetadataDirectory(self.place / "metadata")
        if not (path / name).exists():
            self.digest = init(path / name, None, self.clock())
        self.home = PublisherHome(path / name, no_passphrase)

    def bundle(self, version: str = "1.0.0", **fields: object) -> Path:
        self.built += 1
        directory = self.path / "bundles" / str(self.built)
        return bundles.write(directory, model_bytes=2000, version=version, **fields).path  # type: ignore[arg-type]

    def publish(self, *paths: Path, days: int = 1, **request: object) -> Publication:
        place = DirectoryRepository(
            self.place, self.home.online_keys, self.clock(), timedelta(days=days)
        )
        return publish(self.home, place, PublishRequest(paths, **request), self.clock())  # type: ignore[arg-type]

    def line(self) -> Targets:
        return parse(self.metadata.current()["line-digits"], Targets).signed


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def exam(path: Path, **arrays: object) -> Path:
    good = {"image": np.zeros((8, 8, 8, 1), np.float32), "labels": np.arange(8)}
    kept = {name: value for name, value in (good | arrays).items() if value is not None}
    np.savez(path, **kept)  # type: ignore[arg-type]
    return path


def refusal(site: Site, *paths: Path, **request: object) -> UsageError | IntegrityError:
    before = tree(site.path)
    with pytest.raises((UsageError, IntegrityError)) as caught:
        site.publish(*paths, **request)
    after = tree(site.path)
    assert after == before, "a refused publication left something"
    return caught.value


def tree(path: Path) -> dict[str, str]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


# A home


def test_a_home_has_what_the_design_says(site: Site) -> None:
    data = site.home.roots["1.root.json"]
    root = parse(data, Root).signed
    assert site.digest == hashlib.sha256(data).hexdigest()
    assert (len(root.roles["root"].keyids), root.roles["root"].threshold) == (3, 2)
    assert len(parse(data, Root).signatures) == 3
    assert root.get_root_verification_result(None, *signed(data)).verified
    assert root.expires == START + timedelta(days=365)
    assert root.consistent_snapshot
    keyids = [keyid for role in root.roles.values() for keyid in role.keyids]
    assert len(set(keyids)) == 6
    for path in (site.path / "home" / "keys").glob("*.pem"):
        private = not path.name.endswith(".pub.pem")
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if private else 0o644)


def signed(data: bytes) -> tuple[bytes, object]:
    metadata = parse(data, Root)
    return metadata.signed_bytes, metadata.signatures


def test_keys_are_encrypted_and_asked_for_once(tmp_path: Path) -> None:
    init(tmp_path / "home", b"secret", START)
    asked = []

    def ask() -> bytes:
        asked.append(1)
        return b"secret"

    home = PublisherHome(tmp_path / "home", ask)
    place = DirectoryRepository(tmp_path / "r", home.online_keys, START, timedelta(days=1))
    path = bundles.write(tmp_path, model_bytes=2000).path
    publish(home, place, PublishRequest([path]), START)
    assert asked == [1]
    for key in (tmp_path / "home" / "keys").glob("*[!b].pem"):
        assert b"ENCRYPTED" in key.read_bytes() or key.name.endswith(".pub.pem"), key.name
    with pytest.raises(UsageError) as caught:
        PublisherHome(tmp_path / "home", lambda: b"wrong").signer("line-digits")
    assert caught.value.exit_code == 2
    assert b"secret" not in str(caught.value.diagnostics()).encode()


def test_a_home_is_never_overwritten(site: Site) -> None:
    with pytest.raises(UsageError) as caught:
        init(site.path / "home", None, START)
    assert caught.value.reason == "exists"


def test_a_home_that_cannot_be_finished_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        init(tmp_path / "home", None, START, {"snapshot": {"keyid": "x"}})
    with pytest.raises(UsageError):
        init(tmp_path / "home", b"", START)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError) as caught:
        init(tmp_path / "file" / "home", None, START)
    assert caught.value.reason == "unwritable"


def test_no_home(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        PublisherHome(tmp_path, no_passphrase)
    assert (caught.value.reason, caught.value.exit_code) == ("no_home", 2)
    assert "edgepack repo init" in caught.value.fix


# A directory


def test_a_directory_is_a_whole_repository(site: Site, tmp_path: Path) -> None:
    path = site.bundle()
    done = site.publish(path, exam=exam(tmp_path / "exam.npz"), min_score=0.9)
    blobs = {p.name for p in (site.place / "blobs" / "sha256").iterdir()}
    assert {t.sha256 for t in done.targets} <= blobs
    assert done.uploaded_bytes == sum(
        p.stat().st_size for p in (site.place / "blobs" / "sha256").iterdir()
    )
    for name in blobs:
        content = (site.place / "blobs" / "sha256" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == name
    timestamp = parse(site.metadata.read("timestamp.json") or b"", Timestamp).signed
    assert timestamp.snapshot_meta.version == done.snapshot
    assert timestamp.expires == START + timedelta(days=1)
    snapshot = parse(site.metadata.read(f"{done.snapshot}.snapshot.json") or b"", Snapshot).signed
    assert snapshot.expires == START + timedelta(days=7)
    assert site.line().expires == START + timedelta(days=90)
    assert site.line().unrecognized_fields == {MIN_EPOCH: 0}

    device = TrustClient(
        tmp_path / "tuf", "cam-1", DirectoryChannel(site.place), site.home.roots["1.root.json"],
        b"", Floors(tmp_path / "floors.json"), site.clock,
    )  # fmt: skip
    approved = device.approve_local(target_of(path), FACTS)
    assert approved.exam is not None
    assert approved.exam.min_score == 0.9


def test_a_stick_may_be_good_for_longer(site: Site) -> None:
    site.publish(site.bundle(), days=30)
    timestamp, snapshot = site.metadata.timestamp(), site.metadata.snapshot()
    assert timestamp is not None
    assert snapshot is not None
    assert timestamp.expires == snapshot.expires == START + timedelta(days=30)


def test_versions_add_up(site: Site) -> None:
    for version in ("1.0.0", "1.1.0"):
        site.publish(site.bundle(version))
    site.publish(site.bundle("0.1.0", name="person"))
    assert len(site.line().targets) == 2
    assert site.line().version == 2
    top = parse(site.metadata.current()["targets"], Targets).signed
    assert top.version == 3  # one more per line
    assert top.delegations is not None
    assert list(top.delegations.roles or {}) == ["line-digits", "line-person"]
    assert all(role.terminating for role in (top.delegations.roles or {}).values())


def test_the_same_again_changes_nothing_and_repairs(site: Site) -> None:
    path = site.bundle()
    first = site.publish(path)
    lost = next(iter((site.place / "blobs" / "sha256").iterdir()))
    size = lost.stat().st_size
    lost.unlink()
    second = site.publish(path)
    assert second.uploaded_bytes == size
    assert lost.stat().st_size == size
    assert second.targets == first.targets
    assert site.line().version == 1


def test_unchanged_blobs_are_sent_once(site: Site) -> None:
    site.publish(site.bundle("1.0.0"))
    done = site.publish(site.bundle("1.1.0"))
    assert done.uploaded_bytes < 6000  # the model's 2000 bytes and goldens are there


def test_an_exam_stays_and_can_be_replaced(site: Site, tmp_path: Path) -> None:
    path = site.bundle()
    site.publish(path, exam=exam(tmp_path / "a.npz"), min_score=0.9)
    site.publish(site.bundle("1.1.0"))
    kept = site.line().targets["models/digits/exam.npz"]
    assert kept.custom == {"v": 1, "kind": "exam", "min_score": "0.900000", "samples": 8}
    site.publish(path, exam=exam(tmp_path / "b.npz", labels=np.ones(8, int)), min_score=0.5)
    replaced = site.line().targets["models/digits/exam.npz"]
    assert replaced.custom["min_score"] == "0.500000"
    assert replaced.hashes != kept.hashes


def test_other_content_under_a_published_version(site: Site) -> None:
    site.publish(site.bundle())
    error = refusal(site, site.bundle(license="MIT"))
    assert (error.reason, error.exit_code) == ("already_published", 2)
    assert "next version" in error.fix


def test_the_epoch_floor_rises_and_never_falls(site: Site) -> None:
    old, new = site.bundle("1.0.0"), site.bundle("1.1.0", security_epoch=2)
    site.publish(old)
    site.publish(new, min_epoch=2)
    assert site.line().unrecognized_fields[MIN_EPOCH] == 2
    site.publish(new)
    assert site.line().unrecognized_fields[MIN_EPOCH] == 2
    assert refusal(site, new, min_epoch=1).reason == "epoch_below_floor"
    assert refusal(site, old).reason == "epoch_below_floor"
    assert refusal(site, site.bundle("1.2.0", security_epoch=1)).exit_code == 2


def test_what_tires_is_signed_again(site: Site) -> None:
    path = site.bundle()
    site.publish(path)
    site.clock.forward(days=50)
    site.publish(path)
    assert site.line().expires == site.clock() + timedelta(days=90)
    top = parse(site.metadata.current()["targets"], Targets).signed
    assert top.expires == site.clock() + timedelta(days=90)


# Bundles that must not be published


def test_an_unsigned_bundle(site: Site) -> None:
    error = refusal(site, bundles.write(site.path / "u", key=None, model_bytes=2000).path)
    assert (error.reason, error.exit_code) == ("unsigned", 3)


def test_a_bundle_of_another_publisher(site: Site) -> None:
    path = site.bundle()
    error = refusal(site, path, public=bundles.OTHER_KEY.public_key())
    assert error.exit_code == 3
    site.publish(path, public=bundles.KEY.public_key())


def test_a_tampered_bundle(site: Site) -> None:
    path = site.bundle()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert refusal(site, path).exit_code == 3


def test_a_bundle_that_is_not_there(site: Site) -> None:
    assert refusal(site, site.path / "none.edgepack").exit_code == 2


def test_one_bad_bundle_stops_them_all(site: Site) -> None:
    unsigned = bundles.write(site.path / "u", key=None, model_bytes=2000, version="1.1.0").path
    refusal(site, site.bundle(), unsigned)
    assert not site.place.exists()


@pytest.mark.parametrize(
    "arrays",
    [
        {"labels": None},
        {"image": None},
        {"extra": np.zeros(8)},
        {"image": np.zeros((8, 9, 8, 1), np.float32)},
        {"image": np.zeros((7, 8, 8, 1), np.float32)},
        {"image": np.zeros((8, 64), np.float32)},
        {"labels": np.zeros((8, 1), int)},
        {"labels": np.zeros(0, int), "image": np.zeros((0, 8, 8, 1), np.float32)},
        {"labels": np.zeros(65, int), "image": np.zeros((65, 8, 8, 1), np.float32)},
        {"labels": np.array([{}] * 8)},
        {"labels": np.zeros(8, np.float32)},
        {"image": np.zeros((8, 8, 8, 1), np.float64)},
        {"image": np.full((8, 8, 8, 1), np.nan, np.float32)},
    ],
)
def test_a_useless_exam(site: Site, tmp_path: Path, arrays: dict[str, object]) -> None:
    bundle = site.bundle()
    file = exam(tmp_path / "exam.npz", **arrays)
    error = refusal(site, bundle, exam=file, min_score=0.5)
    assert (error.reason, error.exit_code) == ("bad_exam", 2)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"not an npz", None])
def test_a_broken_exam(site: Site, tmp_path: Path, data: bytes | None) -> None:
    bundle = site.bundle()
    if data is not None:
        (tmp_path / "exam.npz").write_bytes(data)
    assert refusal(site, bundle, exam=tmp_path / "exam.npz").reason == "bad_exam"


def test_an_exam_for_two_lines(site: Site, tmp_path: Path) -> None:
    paths = site.bundle(), site.bundle(name="person")
    refusal(site, *paths, exam=exam(tmp_path / "exam.npz"), min_score=0.5)


# Homes and repositories that have lost touch


def test_the_slower_of_two_publishers_starts_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one publication is lost, and there are two files of one version."""
    site.publish(site.bundle("1.0.0"))
    shutil.copytree(site.path / "home", site.path / "colleague")
    colleague = Site(site.path, "colleague")
    put, slower = DirectoryRepository.put, site.bundle("1.2.0")

    def meanwhile(self: DirectoryRepository, *blob: object) -> None:
        monkeypatch.setattr(DirectoryRepository, "put", put)
        colleague.publish(colleague.bundle("1.1.0"))
        put(self, *blob)  # type: ignore[arg-type]

    monkeypatch.setattr(DirectoryRepository, "put", meanwhile)
    with pytest.raises(UsageError) as caught:
        site.publish(slower)
    assert caught.value.reason == "overtaken"
    site.publish(slower)
    assert [path.split("/")[2] for path in site.line().targets] == ["1.0.0", "1.1.0", "1.2.0"]


def test_a_home_that_missed_the_last_step_catches_up(site: Site) -> None:
    site.publish(site.bundle("1.0.0"))
    kept = tree(site.path / "home" / "metadata")
    site.publish(site.bundle("1.1.0"))
    for name in tree(site.path / "home" / "metadata").keys() - kept.keys():
        (site.path / "home" / "metadata" / name).unlink()
    site.publish(site.bundle("1.2.0"))
    assert len(site.line().targets) == 3
    assert site.line().version == 3


def test_a_repository_restored_from_a_backup_catches_up(site: Site) -> None:
    site.publish(site.bundle("1.0.0"))
    backup = site.metadata.read("timestamp.json") or b""
    site.clock.forward(hours=1)
    site.publish(site.bundle("1.1.0"))
    site.metadata.write("timestamp.json", backup)
    assert len(site.line().targets) == 1
    site.publish(site.bundle("1.2.0"))
    assert len(site.line().targets) == 3


def test_a_repository_of_another_publisher(site: Site, tmp_path: Path) -> None:
    site.publish(site.bundle())
    stranger = Site(tmp_path, "stranger")
    error = refusal(stranger, stranger.bundle("2.0.0"))
    assert (error.reason, error.exit_code) == ("bad_root", 3)


def test_a_repository_that_was_tampered_with(site: Site) -> None:
    site.publish(site.bundle())
    data = site.metadata.read("1.line-digits.json") or b""
    site.metadata.write("1.line-digits.json", data.replace(b'"epoch":0', b'"epoch":7'))
    assert refusal(site, site.bundle("1.1.0")).reason == "bad_signature"


def test_a_lost_line_key(site: Site) -> None:
    site.publish(site.bundle())
    (site.path / "home" / "keys" / "line-digits.pem").unlink()
    (site.path / "home" / "keys" / "line-digits.pub.pem").unlink()
    error = refusal(site, site.bundle("1.1.0"))
    assert (error.reason, error.exit_code) == ("no_key", 2)


def test_a_line_of_somebody_elses_key(site: Site) -> None:
    site.publish(site.bundle())
    for name in ("line-digits.pem", "line-digits.pub.pem"):
        (site.path / "home" / "keys" / name).unlink()
    create_keypair(site.path / "home" / "keys" / "line-digits.pem", None)
    error = refusal(site, site.bundle("1.1.0"))
    assert (error.reason, error.exit_code) == ("wrong_key", 2)


def test_publishing_needs_no_root_key_once_made(site: Site) -> None:
    for path in (site.path / "home" / "keys").glob("root-*"):
        path.unlink()
    site.publish(site.bundle())
    assert len(site.line().targets) == 1


def test_a_place_that_is_a_file(site: Site) -> None:
    site.place.write_bytes(b"")
    error = refusal(site, site.bundle())
    assert error.exit_code == 2


def test_a_home_of_a_fleet_cannot_serve_a_directory(tmp_path: Path) -> None:
    local = Site(tmp_path)
    keys = {
        role: {"keyid": s.public_key.keyid, **s.public_key.to_dict()}
        for role, s in (
            ("snapshot", local.home.signer("root-1")),
            ("timestamp", local.home.signer("root-2")),
        )
    }
    init(tmp_path / "fleets", None, START, keys)
    with pytest.raises(UsageError) as caught:
        PublisherHome(tmp_path / "fleets", no_passphrase).online_keys()
    assert caught.value.reason == "no_online_keys"


# The command line


def run(*args: object, code: int = 0, env: dict[str, str] | None = None) -> str:
    @click.command(context_settings={"ignore_unknown_options": True})
    @click.argument("rest", nargs=-1)
    def command(rest: tuple[str, ...]) -> None:
        run_command(repo, [str(arg) for arg in args])

    result = CliRunner().invoke(command, [], env=env)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stdout if code == 0 else result.stderr


def test_the_commands(tmp_path: Path) -> None:
    path = bundles.write(tmp_path, model_bytes=2000).path
    made = json.loads(run("init", tmp_path / "home", "--no-passphrase", "--json"))
    root = Path(made["root"])
    assert made["schema"] == "edgepack.repo/v1"
    assert made["root_sha256"] == hashlib.sha256(root.read_bytes()).hexdigest()
    assert made["encrypted"] is False
    args = ("--repo", tmp_path / "repo", "--home", tmp_path / "home")
    pub = tmp_path / "pub.pem"
    pub.write_bytes(public_pem(bundles.KEY.public_key()))
    told = json.loads(run("publish", path, *args, "--key", pub, "--json"))
    assert told["schema"] == "edgepack.publish/v1"
    assert told["releases"] == ["digits@1.0.0"]
    assert told["targets"][0]["path"] == "models/digits/1.0.0/onnx-int8.json"
    assert "models/digits/1.0.0/onnx-int8.json" in run("publish", path, *args)


def test_init_prints_what_devices_pin(tmp_path: Path) -> None:
    text = run("init", tmp_path / "home", "--no-passphrase")
    root = (tmp_path / "home" / "metadata" / "1.root.json").read_bytes()
    assert hashlib.sha256(root).hexdigest() in text


def test_the_passphrase_of_the_environment(tmp_path: Path) -> None:
    env = {"EDGEPACK_PASSPHRASE": "secret"}
    path = bundles.write(tmp_path, model_bytes=2000).path
    args = ("publish", path, "--repo", tmp_path / "repo", "--home", tmp_path / "home")
    assert json.loads(run("init", tmp_path / "home", "--json", env=env))["encrypted"] is True
    run(*args, env=env)
    assert "passphrase is wrong" in run(*args, env={"EDGEPACK_PASSPHRASE": "other"}, code=2)
    assert "no terminal" in run(*args, code=2)


def test_the_default_home_is_the_users(tmp_path: Path) -> None:
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    path = bundles.write(tmp_path, model_bytes=2000).path
    assert "not a publisher's home" in run(
        "publish", path, "--repo", tmp_path / "r", code=2, env=env
    )
    run("init", "--no-passphrase", env=env)
    run("publish", path, "--repo", tmp_path / "r", env=env)


def test_a_fleet_that_is_not_there(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9"
    text = run("init", tmp_path / "home", "--fleet", url, "--no-passphrase", code=7)
    assert url in text
    assert not (tmp_path / "home").exists()


def test_an_exam_needs_a_score(tmp_path: Path) -> None:
    run("publish", "x", "--repo", tmp_path, "--exam", tmp_path / "exam.npz", code=2)
    run("publish", "x", "--repo", tmp_path, "--min-score", "0.5", code=2)
    run("publish", "x", "--repo", tmp_path, "--exam", "e", "--min-score", "1.5", code=2)
    # NaN is within any limits that are merely compared, and no device could read it.
    said = run("publish", "x", "--repo", tmp_path, "--exam", "e", "--min-score", "nan", code=2)
    assert "finite" in said


def test_a_new_key_never_replaces_an_old_one(tmp_path: Path) -> None:
    create_keypair(tmp_path / "k.pem", None)
    first = load_private(tmp_path / "k.pem")
    with pytest.raises(UsageError):
        create_keypair(tmp_path / "k.pem", None)
    assert load_private(tmp_path / "k.pem").private_numbers() == first.private_numbers()


def test_what_is_discarded_has_its_key_replaced() -> None:
    """Else it would be kept without a word: its key still counts."""
    options = KeyOptions((), (), (), (), (), ("line-digits",))
    with pytest.raises(UsageError) as caught:
        _ = options.doubt
    assert "--replace line-digits" in caught.value.fix
    assert replace(options, replace=("line-digits",)).doubt.discard == ("line-digits",)


def test_the_place_that_is_full_is_named(site: Site, tmp_path: Path) -> None:
    site.publish(site.bundle())
    (blob, *_) = (site.place / "blobs" / "sha256").iterdir()
    (tmp_path / "full").write_bytes(b"")
    place = DirectoryRepository(site.place, site.home.online_keys, START, timedelta())
    with pytest.raises(UsageError, match="full") as caught:
        place.fetch(blob.name, blob.stat().st_size, tmp_path / "full" / "blob")
    assert caught.value.reason == "unwritable"

"""Several people sign: requests go out, signatures come back, and nothing else gets through."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.signer import SSlibKey
from tuf.api.metadata import Metadata, Root, Targets

from edgepack import canonical
from edgepack.errors import EdgepackError, IntegrityError, UsageError
from edgepack.keys import create_keypair, load_private
from edgepack.metadata import parse, public_key, signer_of, split_name
from edgepack_packager.adapters.publisher_home import PublisherHome
from edgepack_packager.core.draft import Change, Draft, missing
from edgepack_packager.core.request import Request, read_request, review, write_request
from edgepack_packager.core.roles import KeyChange, LineChange
from edgepack_packager.repository import PublishRequest, send_bundles
from edgepack_packager.staging import merge, open_request, request, sign
from edgepack_packager.standing import current_state
from trust_rig import FACTS, World, no_passphrase


class Team:
    """Ann keeps the home and its targets key; Bob and Cay sign on machines of their own."""

    def __init__(self, path: Path) -> None:
        self.world, self.path = World(path), path
        self.keys = {}
        for name in ("bob", "cay"):
            create_keypair(path / f"{name}.pem", None)
            self.keys[name] = signer_of(load_private(path / f"{name}.pem"))
        others = [("targets", str(path / f"{n}.pub.pem")) for n in ("bob", "cay")]
        self.world.rotate(add=others)
        self.first = self.world.home.roots["1.root.json"]
        self.root_keys = {n: self.world.home.signer(n) for n in ("root-1", "root-2", "root-3")}

    def take_root_keys_away(self) -> None:
        for path in (self.path / "home" / "keys").glob("root-*.pem"):
            if not path.name.endswith(".pub.pem"):
                path.unlink()

    def ask(self, change: Change, name: str = "request.json") -> Path:
        state = current_state(self.world.home, self.world.published)
        request(self.world.home, state, change, self.path / name, self.world.clock())
        return self.path / name

    def signed(self, path: Path, signer: object, name: str) -> Request:
        asked = open_request(path)
        review(asked, self.first, self.world.clock())
        done = sign(asked, signer, None, lambda: True, self.path / f"{name}.json")  # type: ignore[arg-type]
        return open_request(done.path)

    def merge(self, *requests: Request) -> None:
        merge(self.world.home, self.world.published, requests, self.world.clock())


@pytest.fixture
def team(tmp_path: Path) -> Team:
    return Team(tmp_path)


THRESHOLD = Change(keys=(KeyChange("targets", threshold=2),))


def two_of_three(team: Team) -> None:
    path = team.ask(THRESHOLD)
    team.merge(team.signed(path, team.keys["bob"], "b"))
    assert team.world.home.root.roles["targets"].threshold == 2


def test_two_of_three_people_sign_a_new_line(team: Team) -> None:
    two_of_three(team)
    world = team.world
    bundle = world.bundle()
    change, sent = send_bundles(world.published, PublishRequest([bundle]))
    assert sent > 0
    path = team.ask(change)
    asked = open_request(path)
    assert any("approves models/digits/1.0.0" in text for text in asked.changes)
    with pytest.raises(UsageError) as caught:
        team.merge(asked)
    assert caught.value.reason == "signatures_missing"
    team.merge(asked, team.signed(path, team.keys["cay"], "c"))
    world.director.assign("cam-1", world.image.releases()[0].variants[0])
    assert world.device().approve(FACTS) is not None


def test_root_keys_in_three_places_rotate_a_root(team: Team) -> None:
    world = team.world
    world.release()
    team.take_root_keys_away()
    new = public_key(create_keypair(team.path / "new.pem", None).read_bytes())
    old = team.root_keys["root-1"].public_key.keyid
    change = Change(keys=(KeyChange("root", add=(new,), remove=(old,)),))
    path = team.ask(change)
    assert [m.count for m in missing(open_request(path).state, open_request(path).draft)] == [2, 2]
    two = team.signed(path, team.root_keys["root-2"], "r2")
    with pytest.raises(UsageError) as caught:
        team.merge(two)
    assert "root: 1 more of" in caught.value.why
    three = team.signed(path, team.root_keys["root-3"], "r3")
    team.merge(two, three)
    assert world.home.root.version == 3
    assert new.keyid in world.home.root.roles["root"].keyids
    world.director.assign("cam-1", world.image.releases()[0].variants[0])
    assert world.device().approve(FACTS) is not None


def test_signatures_add_up_one_after_the_other_too(team: Team) -> None:
    team.take_root_keys_away()
    path = team.ask(Change(again=frozenset({"root"})))
    team.signed(path, team.root_keys["root-2"], "one")
    both = team.signed(team.path / "one.json", team.root_keys["root-3"], "two")
    team.merge(both)
    assert team.world.home.root.version == 3


def test_a_signer_sees_what_it_changes_and_may_decline(team: Team) -> None:
    path = team.ask(THRESHOLD)
    asked = open_request(path)
    changes = review(asked, team.first, team.world.clock())
    assert "root: targets: 2 of 3 keys have to sign" in changes
    with pytest.raises(UsageError) as caught:
        sign(asked, team.keys["bob"], None, lambda: False, team.path / "no.json")
    assert caught.value.reason == "declined"
    assert not (team.path / "no.json").exists()


def test_a_key_that_does_not_count_signs_nothing(team: Team) -> None:
    stranger = signer_of(ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(UsageError) as caught:
        team.signed(team.ask(THRESHOLD), stranger, "x")
    assert caught.value.reason == "wrong_key"


def test_a_request_that_was_overtaken(team: Team) -> None:
    path = team.ask(THRESHOLD)
    late = team.signed(path, team.keys["bob"], "b")
    team.world.release()
    with pytest.raises(EdgepackError) as caught:
        team.merge(late)
    assert caught.value.reason == "stale_request"


def test_a_home_does_not_sign_on_top_of_an_old_state(team: Team, tmp_path: Path) -> None:
    """Else somebody could have a revocation undone by who does not know of it."""
    old = open_request(team.ask(THRESHOLD))
    signer_home = tmp_path / "signer"
    (signer_home / "metadata").mkdir(parents=True)
    (signer_home / "metadata" / "1.root.json").write_bytes(team.first)
    home = PublisherHome(signer_home, no_passphrase)
    team.world.release()
    new = open_request(team.ask(THRESHOLD, "new.json"))
    sign(new, team.keys["bob"], home, lambda: True, tmp_path / "n.json")
    with pytest.raises(IntegrityError) as caught:
        sign(old, team.keys["bob"], home, lambda: True, tmp_path / "o.json")
    assert caught.value.reason == "stale_request"


# Whoever makes or carries the request


def changed(asked: Request, name: str, change: Callable[[Targets | Root], None]) -> Request:
    """Return ASKED with another content of the draft's file NAME, and honest words about it."""
    role = split_name(name)[1]
    kind = Root if role == "root" else Targets
    signed = parse(asked.draft.files[name], kind).signed  # type: ignore[type-var]
    change(signed)
    draft = Draft({**asked.draft.files, name: Metadata(signed).to_bytes()})
    return read_request(write_request(asked.state, draft))


def refused(team: Team, asked: Request) -> str:
    with pytest.raises(IntegrityError) as caught:
        review(asked, team.first, team.world.clock())
    return caught.value.reason


def line_request(team: Team) -> tuple[Request, str]:
    team.world.release()
    asked = open_request(team.ask(Change({"digits": LineChange(min_epoch=1)})))
    return asked, next(name for name in asked.draft.files if "line-" in name)


def test_words_that_do_not_fit_the_deed(team: Team) -> None:
    asked = open_request(team.ask(THRESHOLD))
    assert refused(team, replace(asked, changes=("nothing much",))) == "bad_request"


def test_another_publishers_request(team: Team, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    other = World(tmp_path / "o")
    asked = open_request(team.ask(THRESHOLD))
    with pytest.raises(IntegrityError) as caught:
        review(asked, other.home.roots["1.root.json"], team.world.clock())
    assert caught.value.reason == "bad_root"


def later(signed: Targets | Root) -> None:
    signed.expires += timedelta(days=400)


def past(signed: Targets | Root) -> None:
    signed.expires -= timedelta(days=400)


def skip(signed: Targets | Root) -> None:
    signed.version += 1


def unknown(signed: Targets | Root) -> None:
    signed.unrecognized_fields["x-more"] = 1


def policy(signed: Targets | Root) -> None:
    signed.unrecognized_fields["x-edgepack-on-revoked"] = "explode"


@pytest.mark.parametrize("change", [later, past, skip, unknown, policy])
def test_a_line_that_is_not_what_we_sign(
    team: Team, change: Callable[[Targets | Root], None]
) -> None:
    asked, name = line_request(team)
    assert refused(team, changed(asked, name, change)) == "bad_request"


def test_a_published_model_with_other_content(team: Team) -> None:
    asked, name = line_request(team)

    def swap(signed: Targets | Root) -> None:
        assert isinstance(signed, Targets)
        (file,) = signed.targets.values()
        file.hashes["sha256"] = "e" * 64

    assert refused(team, changed(asked, name, swap)) == "mismatch"


@pytest.mark.parametrize("file", ["root", "targets"])
def test_another_key_under_an_id_that_people_know(team: Team, file: str) -> None:
    """TUF does not bind a key's id to the key; a summary of ids would not show the exchange."""
    team.world.release()
    again = frozenset({"root", "targets"})
    asked = open_request(team.ask(Change(again=again)))
    thief = signer_of(ec.generate_private_key(ec.SECP256R1())).public_key

    def swap(signed: Targets | Root) -> None:
        role = "targets" if isinstance(signed, Root) else "line-digits"
        owner = signed if isinstance(signed, Root) else signed.delegations
        assert owner is not None
        keyid = signed.get_delegated_role(role).keyids[0]
        owner.keys[keyid] = SSlibKey(keyid, thief.keytype, thief.scheme, thief.keyval)

    name = next(name for name in asked.draft.files if split_name(name)[1] == file)
    assert refused(team, changed(asked, name, swap)) == "bad_request"


def test_a_base_that_nobody_signed(team: Team) -> None:
    asked, _ = line_request(team)
    line = parse(asked.state.roles["line-digits"], Targets)
    line.signed.unrecognized_fields["x-edgepack-min-epoch"] = 0
    line.signatures.clear()
    roles = {**asked.state.roles, "line-digits": line.to_bytes()}
    forged = replace(asked, state=replace(asked.state, roles=roles))
    assert refused(team, forged) == "bad_signature"


def test_a_signature_that_does_not_count(team: Team) -> None:
    asked = open_request(team.ask(THRESHOLD))
    for name, data in asked.draft.files.items():
        metadata = parse(data, Root if "root" in name else Targets)  # type: ignore[type-var]
        metadata.sign(signer_of(ec.generate_private_key(ec.SECP256R1())), append=True)
        draft = Draft({**asked.draft.files, name: metadata.to_bytes()})
        assert refused(team, replace(asked, draft=draft)) == "bad_signature"


def test_requests_for_different_things_do_not_mix(team: Team) -> None:
    one = open_request(team.ask(THRESHOLD))
    other = open_request(team.ask(Change(again=frozenset({"root"})), "other.json"))
    with pytest.raises(IntegrityError) as caught:
        team.merge(one, other)
    assert caught.value.reason == "bad_request"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b'{"schema": "edgepack.sign-request/v1"}',
        b"[" * 100_000,
        b" " * (8 * 1024 * 1024 + 1),
    ],
)
def test_what_is_no_request(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        read_request(data)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_changed_request_is_both_read_and_believed(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever byte or field somebody changes: it is refused, or says the same."""
    whole, first, now = _example(tmp_path_factory)
    honest = read_request(whole)
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(whole) - 1))
        forged = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    else:
        document = json.loads(whole)
        field = data.draw(st.sampled_from(sorted(document)))
        document[field] = data.draw(
            st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)
            | st.dictionaries(st.text(), st.text() | st.integers())
        )
        forged = canonical.dumps(document)
    try:
        asked = read_request(forged)
        changes = review(asked, first, now)
    except EdgepackError:
        return
    assert changes == list(honest.changes)
    assert {n: parse_signed(n, d) for n, d in asked.draft.files.items()} == {
        n: parse_signed(n, d) for n, d in honest.draft.files.items()
    }


def parse_signed(name: str, data: bytes) -> bytes:
    kind = Root if split_name(name)[1] == "root" else Targets
    return parse(data, kind).signed_bytes  # type: ignore[type-var]


_EXAMPLES: list[tuple[bytes, bytes, object]] = []


def _example(factory: pytest.TempPathFactory) -> tuple[bytes, bytes, object]:
    if not _EXAMPLES:
        team = Team(factory.mktemp("request"))
        asked, _ = line_request(team)
        whole = write_request(asked.state, asked.draft)
        _EXAMPLES.append((whole, team.first, team.world.clock()))
    return _EXAMPLES[0]

"""What `edgepack repo ... --json` prints beside `init` and `publish`; see `documents`."""

from typing import Literal, NotRequired, TypedDict

from edgepack.manifest import Count

__all__ = ["Exported", "RepoStatus", "Revised", "SignStatus"]


class Revised(TypedDict):
    """What commands print that sign without a bundle: files, and what they change, in words."""

    schema: Literal["edgepack.revision/v1"]
    repo: str
    files: list[str]
    changes: list[str]
    snapshot: int


class Exported(TypedDict):
    """What `edgepack repo export --json` prints."""

    schema: Literal["edgepack.export/v1"]
    directory: str
    releases: list[str]
    size_bytes: Count
    copied_bytes: Count
    expires: str
    snapshot: int


class MissingSignatures(TypedDict):
    """How many more keys of a role have to sign, and which could."""

    role: str
    count: Count
    keyids: list[str]


class SignStatus(TypedDict):
    """What `edgepack repo sign-request --json` and `sign --json` print."""

    schema: Literal["edgepack.sign-status/v1"]
    request: str
    changes: list[str]
    missing: list[MissingSignatures]


class RoleKey(TypedDict):
    """A key of a role: its id, its name in this home, whether it can sign from here."""

    keyid: str
    name: str | None
    here: bool


class RoleFacts(TypedDict):
    """One role. Snapshot and timestamp are signed elsewhere: no version, no expiry."""

    role: str
    version: int | None
    expires: str | None
    threshold: Count
    keys: list[RoleKey]
    min_epoch: NotRequired[Count]
    on_revoked: NotRequired[str]


class OnlineFacts(TypedDict):
    """The repository's timestamp: how long it is good, and whether the root's key signed it."""

    timestamp_expires: str
    valid: bool


class RepoStatus(TypedDict):
    """What `edgepack repo status --json` prints."""

    schema: Literal["edgepack.repo-status/v1"]
    home: str
    roles: list[RoleFacts]
    repository: OnlineFacts | None
    warnings: list[str]

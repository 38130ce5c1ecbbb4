"""What `edgepack repo ... --json` prints beside `init` and `publish`; see `documents`."""

from typing import Literal, TypedDict

from edgepack_packager.core.documents import Count

__all__ = ["Exported", "Revised"]


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

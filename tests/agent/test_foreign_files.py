"""What stands where a mirror has a file keeps nobody waiting."""

import os
from pathlib import Path

import pytest

from edgepack_agent.adapters.install import open_foreign


def test_only_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opened as a file, it would be waited for until a restart
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("pipe", "directory", "link", "dangling", "none"):
        with pytest.raises(OSError, match=r"no file|No such file"):
            open_foreign(tmp_path / name)
    left = [_target(fd) for fd in Path("/proc/self/fd").iterdir()]
    assert not [name for name in left if str(tmp_path) in name]
    (tmp_path / "file").write_bytes(b"content")
    with open_foreign(tmp_path / "file") as file:
        assert file.read() == b"content"


def _target(fd: Path) -> str:
    try:
        return str(fd.readlink())
    except OSError:
        return ""

"""Every target of ours passes the suite that a stranger's must pass."""

from pathlib import Path

import pytest

from digits_targets import TARGETS, subject
from edgepack_targets.conformance import CHECKS, Check


@pytest.mark.parametrize("target", [*TARGETS, "onnx-mobile"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(target: str, check: Check, tmp_path: Path) -> None:
    check(subject(target), tmp_path)

"""Releases built once per run, and a site per test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kept import made_once
from system.harness import Site, build_release, clean_env, site


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Bundles by version: 1.0.0 and 3.0.0 are good, 2.0.0 learned wrong labels."""
    wrong = {"1.0.0": 0.0, "2.0.0": 0.42, "3.0.0": 0.02}

    def make(home: Path) -> dict[str, list[Path]]:
        env = clean_env(home)
        return {v: build_release(home / v, v, wrong=share, env=env) for v, share in wrong.items()}

    return made_once(tmp_path_factory, "releases", make)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Site]:
    """A running fleet with an initialised publisher and no devices."""
    with site(tmp_path) as running:
        yield running

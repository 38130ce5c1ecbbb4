"""Keeps a converter from talking: no usage statistics over the network. Hides no error."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["no_telemetry"]


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Keep OpenVINO's tools from sending usage statistics while they are imported and used.

    They report each conversion to an analytics service unless they believe to be in CI, which
    is their only switch that needs no file in the user's home directory.
    """
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before

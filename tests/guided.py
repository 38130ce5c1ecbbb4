"""Coverage-guided fuzzing of one parser with atheris: `scripts/fuzz PARSER [--seconds N]`.

What is found is written to the current directory as `crash-...`, and belongs into a test.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["edgepack", "edgepack_agent"]):
    from edgepack import dsse, oci, oms, patch
    from edgepack.bundle import open_bundle
    from edgepack.errors import EdgepackError
    from edgepack.manifest import read_manifest
    from edgepack.messages import Event, decode_batch
    from edgepack_agent.adapters.https import read_link
from bundles import write
from contracts.test_patch import patch_of

__all__ = ["PARSERS"]

HOME = Path(tempfile.mkdtemp(prefix="edgepack-fuzz-"))
BASE = bytes(range(256)) * 8


def bundle(data: bytes) -> None:
    path = HOME / "fuzzed.edgepack"
    path.write_bytes(data)
    with open_bundle(path):
        pass


PARSERS: dict[str, Callable[[bytes], object]] = {
    "bundle": bundle,
    "patch": lambda data: patch.apply_patch(io.BytesIO(data), io.BytesIO(BASE), io.BytesIO()),
    "oci": oci.read_oci_manifest,
    "index": oci.read_index,
    "manifest": read_manifest,
    "envelope": lambda data: dsse.contents("report", data),
    "signature": oms.signer,
    "batch": lambda data: decode_batch(data, Event),
    "link": lambda data: read_link(data.decode("utf-8", "replace")),
}


def samples(name: str) -> list[bytes]:
    """Return what the parser NAME reads."""
    if name == "patch":
        return [patch_of(BASE, BASE[:900] + b"new" + BASE[900:], c) for c in ("zstd", "bsdiff")]
    if name == "link":
        return [b"https://[::1]:8443/blobs/{sha256}?a=b"]
    found = write(HOME / "sample", model_bytes=200).path
    with open_bundle(found) as opened:
        if name == "manifest":
            return [opened.manifest_bytes]
        return [found.read_bytes() if name == "bundle" else opened.oci_manifest]


def main() -> None:
    """Fuzz until something is found or the time is over."""
    words = argparse.ArgumentParser()
    words.add_argument("parser", choices=PARSERS)
    words.add_argument("--seconds", type=int, default=60)
    asked = words.parse_args()
    seeds = HOME / "seeds"
    seeds.mkdir()
    for number, sample in enumerate(samples(asked.parser)):
        (seeds / str(number)).write_bytes(sample)

    def one(data: bytes) -> None:
        with contextlib.suppress(EdgepackError):
            PARSERS[asked.parser](data)

    flags = [
        f"-max_total_time={asked.seconds}",
        "-rss_limit_mb=1024",
        "-timeout=10",
        "-len_control=0",
    ]
    atheris.Setup([sys.argv[0], *flags, str(seeds)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

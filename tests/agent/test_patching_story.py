"""A device updates by a patch, over a real broker, and the fleet sends what that takes, no more."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from agent_rig import Device, Site, site
from bundles import KEY
from digits import INPUT, OUTPUT, digits_data, digits_net, digits_proto, exam_npz
from edgepack.bundle import open_bundle, write_bundle
from edgepack_fleet.adapters.tables import JobRow
from edgepack_packager.core.deltas import Delta
from fleet_rig import publisher, wait
from slots import digits_manifest, raw

pytestmark = [pytest.mark.mosquitto, pytest.mark.system]


def tuned_release(home: Path, version: str, seed: int) -> Path:
    """Write a signed digits bundle whose last layer has been tuned a little."""
    home.mkdir(parents=True, exist_ok=True)
    net = digits_net()
    noise = np.random.default_rng(seed).normal(0, 1e-3, net.out.shape).astype(np.float32)
    tuned = dataclasses.replace(net, out=net.out + noise * bool(seed))
    model = home / f"{version}.onnx"
    model.write_bytes(digits_proto(batch=1, net=tuned).SerializeToString(deterministic=True))
    inputs = digits_data()[1].head(8).inputs
    np.savez(home / "inputs.npz", **{INPUT: inputs})
    np.savez(home / "outputs.npz", **{OUTPUT: np.concatenate([raw(model, i) for i in inputs])})
    files = {
        "model/model.onnx": model,
        "golden/inputs.npz": home / "inputs.npz",
        "golden/outputs.npz": home / "outputs.npz",
    }
    return write_bundle(home / "dist", digits_manifest(version), files, key=KEY).path


class Counting:
    """Counts the bytes of every blob that the fleet reads for its devices."""

    def __init__(self, place: Site) -> None:
        self.sent: Counter[str] = Counter()
        content = place.service.content
        read = content.read

        def counted(sha256: str, offset: int = 0, length: int | None = None) -> bytes:
            data = read(sha256, offset, length)
            self.sent[sha256] += len(data)
            return data

        content.read = counted  # type: ignore[method-assign]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as found:
        yield found


def publish(place: Site, version: str, seed: int, *delta_from: str) -> tuple[str, int, list[Delta]]:
    """Publish a version; return digest and size of its model, and its patches."""
    bundle = tuned_release(place.root / "models", version, seed)
    owner = publisher(place.service.settings.data)
    exam = exam_npz(place.root / "exam.npz")
    done = owner.publish(bundle, exam=exam, min_score=0.9, delta_from=delta_from)
    with open_bundle(bundle) as opened:
        (file,) = (f for f in opened.manifest.files if f.path == "model/model.onnx")
    return file.sha256, file.size, list(done.deltas)


def update(place: Site, device: Device, version: str) -> str:
    rollout = place.roll_out(version)
    assert place.ended(rollout) == "completed"
    assert device.serving() == f"digits@{version}"
    return rollout


def test_an_update_takes_a_patch_and_not_one_byte_of_the_model(place: Site) -> None:
    counting = Counting(place)
    publish(place, "1.0.0", 0)
    device = place.device(transfer={"via": "mqtt"})
    device.start()
    update(place, device, "1.0.0")

    model, size, (delta,) = publish(place, "1.1.0", 1, "auto")
    assert delta.codec != "full"
    counting.sent.clear()
    rollout = update(place, device, "1.1.0")
    assert model not in counting.sent
    assert delta.size <= sum(counting.sent.values()) < size / 4
    assert place.job(rollout).detail["patches"] == [
        {"target": f"sha256:{model}", "codec": delta.codec, "bytes": delta.size, "whole": size}
    ]
    assert device.accuracy() > 0.85
    blobs = {path.name for path in (device.data / "blobs").iterdir()}
    assert {model, delta.pair.base} <= blobs, "the next patch will need its base"
    wait("the patch to be removed", lambda: not list((device.data / "parts").iterdir()))
    assert device.stop() == 0


def test_a_metered_link_carries_patches_and_never_a_whole_model_unasked(place: Site) -> None:
    counting = Counting(place)
    publish(place, "1.0.0", 0)
    device = place.device(transfer={"via": "mqtt", "metered": "allow"})
    device.start()
    update(place, device, "1.0.0")
    device.stop()

    # From now on, every byte costs.
    device.configure(transfer={"via": "mqtt", "metered": "patches", "metered_interfaces": ["lo"]})
    device.start()
    patched, _, _ = publish(place, "1.1.0", 1, "auto")
    update(place, device, "1.1.0")
    assert patched not in counting.sent

    whole, _, _ = publish(place, "1.2.0", 2)
    rollout = place.roll_out("1.2.0")

    wait("the job", lambda: _has_job(place, rollout))

    def said() -> bool:
        return "metered" in {place.job(rollout).reason, *_words(device.status())}

    wait("the device to say why it waits", said, 30)
    assert whole not in counting.sent
    assert device.serving() == "digits@1.1.0"
    assert device.stop() == 0


def _words(status: object) -> set[str]:
    return set(json.dumps(status).replace('"', " ").replace(",", " ").split())


def _has_job(place: Site, rollout: str) -> bool:
    with place.service.database.read() as session:
        return session.scalar(select(JobRow).where(JobRow.rollout_id == rollout)) is not None

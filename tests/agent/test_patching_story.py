"""A device updates by a patch, over a real broker, and the fleet sends what that takes, no more."""

import dataclasses
import io
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
from edgepack import messages
from edgepack.bundle import open_bundle, write_bundle
from edgepack.offers import Offer, OfferDirectory
from edgepack.patch import Frame, Header, write_frame, write_header
from edgepack_fleet.adapters.tables import JobRow
from edgepack_fleet.transfer import Piece
from edgepack_packager.core.deltas import Delta
from edgepack_packager.workers.patches import encode
from fleet_rig import publisher, wait
from patch_rig import digest
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
    """Counts the bytes of every blob that the fleet sends to its devices."""

    def __init__(self, place: Site) -> None:
        self.sent: Counter[str] = Counter()
        transfer = place.service.transfer
        blocks = transfer._content_blocks

        def counted(device: str, request: messages.BlobRequest) -> Iterator[Piece]:
            for piece in blocks(device, request):
                self.sent[request.sha256] += len(piece.payload)
                yield piece

        transfer._content_blocks = counted  # type: ignore[method-assign]


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

    # A stolen fleet offers a patch of its own: it costs its bytes and is not believed.
    trojan, size, _ = publish(place, "1.2.0", 2)
    evil = offer_evil(place, device.data / "blobs" / model, trojan, size)
    counting.sent.clear()
    rollout = update(place, device, "1.2.0")
    assert counting.sent[evil] == place.service.content.size(evil)
    assert counting.sent[trojan] == size
    (report,) = place.job(rollout).detail["patches"]
    assert report["reason"] == "patch_wrong_result"
    assert (device.data / "blobs" / trojan).stat().st_size == size
    wait("the patch to be removed", lambda: not list((device.data / "parts").iterdir()))
    assert device.stop() == 0


def offer_evil(place: Site, base: Path, target: str, size: int) -> str:
    """Offer, past all checks, a patch that makes something else of BASE; return its digest."""
    old = base.read_bytes()
    new = bytes(100) + old[100:]
    file = io.BytesIO()
    write_header(file, Header("bsdiff", base.name, len(old), target, size, 1))
    write_frame(file, Frame(0, len(old), len(new), 0), encode("bsdiff", old, new))
    patch = file.getvalue()
    place.service.content.put(digest(patch), [patch])
    offer = Offer(
        base=base.name, base_size=len(old), codec="bsdiff", patch=digest(patch), size=len(patch)
    )
    OfferDirectory(place.service.settings.data / "patches").add(target, size, [offer])
    return digest(patch)


@pytest.mark.soak
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

"""Where a model runs: what is there, what is refused, what is said of it. Without a GPU or NPU."""

import numpy as np
import onnxruntime
import openvino as ov
import pytest

from digits import OUTPUT
from digits_targets import TARGETS, subject
from edgepack.errors import UnsupportedError
from edgepack_targets.interface import Device, Hint, Placement


def there(target: str, device: str) -> bool:
    if target == "openvino":
        return any(name.startswith(device) for name in ov.Core().available_devices)
    providers = onnxruntime.get_available_providers()
    return target == "onnx" and device == "GPU" and "CUDAExecutionProvider" in providers


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("device", ["GPU", "NPU"])
def test_a_device_that_is_not_there_is_refused_and_no_other_is_taken(
    target: str, device: Device
) -> None:
    if there(target, device):
        pytest.skip(f"{target} has a {device} here")
    one = subject(target)
    with pytest.raises(UnsupportedError) as caught:
        one.target.load(one.model_dir, one.manifest, threads=1, place=Placement(device))
    error = caught.value
    assert error.reason == "no_device"
    assert device in error.what
    assert "CPU" in error.why
    assert "`device`" in error.fix


@pytest.mark.parametrize("target", TARGETS)
def test_auto_takes_what_is_there_and_says_what_it_took(target: str) -> None:
    if there(target, "GPU"):
        pytest.skip(f"{target} has a GPU here")
    one = subject(target)
    session = one.target.load(one.model_dir, one.manifest, threads=1, place=Placement("AUTO"))
    assert session.effective.device.startswith("CPU")
    assert session.effective == one.load().effective


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_openvino_is_tuned_as_asked_and_answers_the_same(hint: Hint) -> None:
    one = subject("openvino")
    session = one.target.load(one.model_dir, one.manifest, place=Placement(hint=hint))
    assert (session.effective.hint, session.effective.precision) == (hint, "f32")
    answers = session.run(one.first())[OUTPUT]
    assert np.abs(answers - one.expected[OUTPUT][:1]).max() < 1e-4


@pytest.mark.parametrize("target", ["onnx", "tflite"])
def test_a_runtime_without_hints_says_none(target: str) -> None:
    one = subject(target)
    session = one.target.load(
        one.model_dir, one.manifest, threads=1, place=Placement(hint="throughput")
    )
    assert session.effective.hint == ""

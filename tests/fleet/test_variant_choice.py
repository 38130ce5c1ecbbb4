"""Which bundle of a release a device gets."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edgepack.messages import Inventory
from edgepack.trust import TargetInfo
from edgepack_fleet.core.variants import Release, resolve


def variant(runtime: str, precision: str = "int8", **facts: Any) -> TargetInfo:
    custom = {"v": 1, "kind": "model", "name": "m", "version": "1.0.0", "runtime": runtime,
              "precision": precision} | facts  # fmt: skip
    return TargetInfo(f"models/m/1.0.0/{runtime}-{precision}.json", "0" * 64, 1, custom)


def release(*variants: TargetInfo) -> Release:
    return Release("m", "1.0.0", variants)


def test_the_order_of_the_device_decides() -> None:
    both = release(variant("onnx"), variant("openvino"))
    for first, second in (("onnx", "openvino"), ("openvino", "onnx")):
        found = resolve(both, Inventory(runtimes={first: "1.0", second: "1.0"})).variant
        assert found is not None
        assert found.model.runtime == first


def test_the_smaller_precision_wins_within_a_runtime() -> None:
    found = resolve(
        release(variant("onnx", "fp32"), variant("onnx", "int8")), Inventory(runtimes={"onnx": "1"})
    ).variant
    assert found is not None
    assert found.model.precision == "int8"


def test_what_does_not_fit_is_not_taken_and_the_reason_is_said() -> None:
    inventory = Inventory(arch="aarch64", cpu_features=("neon",), runtimes={"onnx": "1.22.9"})
    cases = {
        "tflite": variant("tflite"),
        "1.23": variant("onnx", min_runtime="1.23"),
        "x86_64": variant("onnx", arch=["x86_64"]),
        "avx512": variant("onnx", cpu_features=["avx512"]),
    }
    for word, only in cases.items():
        found = resolve(release(only), inventory)
        assert found.variant is None
        assert word in found.reason
    assert resolve(release(*cases.values(), variant("onnx")), inventory).variant is not None


def test_versions_compare_by_number() -> None:
    needs = release(variant("onnx", min_runtime="1.9"))
    assert resolve(needs, Inventory(runtimes={"onnx": "1.10.0"})).variant is not None


def test_a_device_without_runtimes_and_a_release_without_variants() -> None:
    assert "no runtime" in resolve(release(variant("onnx")), Inventory()).reason
    assert "no variant" in resolve(release(), Inventory(runtimes={"onnx": "1"})).reason


@given(
    st.dictionaries(st.sampled_from(["onnx", "openvino", "tflite"]), st.text(max_size=12)),
    st.text(max_size=12),
)
def test_whatever_a_device_says_it_is_the_answer_is_a_variant_or_a_reason(
    runtimes: dict[str, str], arch: str
) -> None:
    offered = release(variant("onnx", min_runtime="1.2"), variant("tflite", arch=["x86_64"]))
    found = resolve(offered, Inventory(arch=arch, runtimes=runtimes))
    assert (found.variant is None) == bool(found.reason)
    if found.variant is not None:
        assert found.variant.model.runtime in runtimes

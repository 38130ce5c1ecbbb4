"""Recipe, source kinds and plan: pure, total, and a reason for every no."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import EdgepackError, UnsupportedError, UsageError
from edgepack_packager.core.compression import BY_KIND, COMPRESSIBLE
from edgepack_packager.core.plan import HOST, KINDS, Plan, make_plan
from edgepack_packager.core.recipe import (
    PRECISIONS,
    ModelCard,
    Recipe,
    Variant,
    parse_shape,
    variants,
)
from edgepack_packager.core.source import NOT_YET, recognise
from edgepack_targets import registry
from edgepack_targets.interface import Quantization
from edgepack_targets.quantization import wanted_options

CAPABILITIES = {name: registry.find(name).capability() for name in registry.names()}
TARGETS = ("openvino", "tflite", "onnx", "onnx-mobile")
ALL = variants(TARGETS, ("fp32", "int8"))
EVERY = variants(TARGETS, PRECISIONS)


def recipe(*wanted: Variant) -> Recipe:
    return Recipe(
        name="m", version="1.0.0", variants=wanted, card=ModelCard(), shapes={}, calibrated=True
    )


def plan(kind: str, *wanted: Variant) -> tuple[Plan, dict[Variant, EdgepackError]]:
    return make_plan(kind, recipe(*wanted), CAPABILITIES)


@given(
    st.sampled_from(sorted(KINDS)),
    st.lists(st.sampled_from(EVERY), min_size=1, unique=True),
)
def test_every_variant_has_a_route_or_a_reason(kind: str, wanted: list[Variant]) -> None:
    made, refused = plan(kind, *wanted)
    assert [r.variant for r in made.routes] + list(refused) == sorted(
        wanted, key=lambda v: v in refused
    )
    assert all(error.fix and error.why for error in refused.values())
    for route in made.routes:
        before = {made.source.opening.id}
        for step in route.steps:
            assert set(step.needs) <= before, "a step builds only on what is there"
            before.add(step.id)
        lowered = route.quantization.how.precision if route.quantization else "fp32"
        assert lowered == route.variant.precision
        assert route.plain.variant == Variant(route.variant.target, "fp32")
        assert not any(step.how for step in route.plain.steps)


def test_steps_shared_by_variants_are_the_same_step() -> None:
    made, _ = plan("keras", *ALL)
    by_id = {}
    for step in (s for route in made.routes for s in route.steps):
        assert by_id.setdefault(step.id, step) == step
    assert len(by_id) == 2 + 3 + 3 + 2, "two bridges, three conversions and quantisations, mobile"


def test_onnx_needs_no_toolchain_and_keras_needs_one() -> None:
    assert plan("onnx", Variant("openvino", "int8"))[0].toolchains == ()
    assert plan("keras", *ALL)[0].toolchains == ("tf",)


def test_each_bridge_has_the_toolchain_it_needs() -> None:
    assert plan("onnx", Variant("tflite", "fp32"))[0].toolchains == ("onnx2tf",)
    assert plan("torch_program", *ALL)[0].toolchains == ("torch",)
    assert plan("tflite", Variant("onnx", "fp32"))[0].toolchains == ("tf",)
    assert plan("tflite", Variant("openvino", "fp32"))[0].toolchains == ()


def test_an_ir_is_for_openvino_only() -> None:
    made, refused = plan("openvino", *variants(TARGETS, ("fp32",)))
    assert [route.variant.target for route in made.routes] == ["openvino"]
    assert {error.reason for error in refused.values()} == {"no_route"}


def test_a_source_that_is_int8_already_is_only_packed() -> None:
    made, refused = make_plan("tflite", recipe(*ALL), CAPABILITIES, precision="int8")
    assert {route.variant.precision for route in made.routes} == {"int8"}
    assert not any(step.how for route in made.routes for step in route.steps)
    assert {error.reason for error in refused.values()} == {"already_quantized"}


def test_a_mobile_file_is_made_of_the_finished_onnx_model() -> None:
    (route,) = plan("onnx", Variant("onnx-mobile", "int8"))[0].routes
    assert [(s.id, s.target) for s in route.steps] == [
        ("onnx-fp32", "onnx"), ("onnx-int8", "onnx"), ("onnx-mobile-onnx-int8", "onnx-mobile"),
    ]  # fmt: skip


def test_settings_that_a_target_cannot_express_are_refused() -> None:
    how = Quantization("int8", ranges="entropy", smooth=True, io="int8")
    assert wanted_options(how) == {"entropy", "smooth", "int8_io"}
    wanted = replace(recipe(*ALL), settings={"io": "int8"})
    _, refused = make_plan("keras", wanted, CAPABILITIES)
    assert refused[Variant("openvino", "int8")].reason == "no_option"
    assert Variant("tflite", "int8") not in refused


def test_settings_that_mean_nothing_together_are_refused_before_any_work() -> None:
    wanted = replace(recipe(*ALL), settings={"method": "dynamic", "ranges": "entropy"})
    _, refused = make_plan("onnx", wanted, CAPABILITIES)
    assert refused[Variant("onnx", "int8")].reason == "no_option"


def test_a_search_for_fp32_alone_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        replace(
            recipe(Variant("onnx", "fp32")), auto=True, max_drop=0.1, evaluated=True, settings={}
        )
    assert caught.value.reason == "auto_fp32"


def test_openvino_takes_the_export_directly() -> None:
    made, _ = plan("saved_model", Variant("openvino", "fp32"))
    assert [(s.toolchain, s.source_format) for s in made.routes[0].steps] == [(HOST, "saved_model")]


def test_repeated_flags_are_one_variant() -> None:
    assert variants(("onnx", "onnx"), ("fp32", "fp32")) == (Variant("onnx", "fp32"),)


@given(st.text(max_size=20))
def test_shape_is_read_or_refused(text: str) -> None:
    try:
        name, shape = parse_shape(text)
    except EdgepackError:
        return
    assert name
    assert shape[0] in {1, -1}
    assert all(size > 0 for size in shape[1:])


def test_shape_of_a_name_with_equals() -> None:
    assert parse_shape("a=b=1,3,48,320") == ("a=b", (1, 3, 48, 320))


@given(st.text(max_size=12), st.binary(max_size=8))
def test_any_file_is_recognised_or_refused(name: str, head: bytes) -> None:
    try:
        kind = recognise(name, entries=None, head=head)
    except (UsageError, UnsupportedError):
        return
    assert kind.name in KINDS


@pytest.mark.parametrize("suffix", NOT_YET)
def test_known_but_no_source(suffix: str) -> None:
    with pytest.raises(UnsupportedError, match=f"model{suffix.upper()} is "):
        recognise(f"model{suffix.upper()}", entries=None, head=b"PK")


def test_a_directory_needs_its_graph() -> None:
    assert recognise("m", entries=frozenset({"saved_model.pb"}), head=b"").name == "saved_model"
    with pytest.raises(UsageError, match=r"saved_model\.pb|SavedModel"):
        recognise("m", entries=frozenset({"variables"}), head=b"")


@given(st.sampled_from(sorted(KINDS)), st.sampled_from(sorted(BY_KIND)))
def test_a_step_that_is_allowed_has_a_worker(kind: str, step: str) -> None:
    if step in COMPRESSIBLE.get(kind, ()):
        assert KINDS[kind].compress is not None

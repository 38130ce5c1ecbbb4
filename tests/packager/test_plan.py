"""Recipe, source kinds and plan: pure, total, and a reason for every no."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import EdgepackError, UnsupportedError, UsageError
from edgepack_packager.core.plan import HOST, Plan, make_plan
from edgepack_packager.core.recipe import ModelCard, Recipe, Variant, parse_shape, variants
from edgepack_packager.core.source import NOT_YET, recognise

FORMATS = {
    "openvino": ("saved_model", "onnx", "tflite"),
    "tflite": ("tflite",),
    "onnx": ("onnx",),
}
ALL = variants(("openvino", "tflite", "onnx"), ("fp32", "int8"))


def recipe(*wanted: Variant) -> Recipe:
    return Recipe(
        name="m", version="1.0.0", variants=wanted, card=ModelCard(), shapes={}, calibrated=True
    )


def plan(kind: str, *wanted: Variant) -> tuple[Plan, dict[Variant, UnsupportedError]]:
    return make_plan(kind, recipe(*wanted), FORMATS)


@given(
    st.sampled_from(["keras", "saved_model", "onnx"]),
    st.lists(st.sampled_from(ALL), min_size=1, unique=True),
)
def test_every_variant_has_a_route_or_a_reason(kind: str, wanted: list[Variant]) -> None:
    made, refused = plan(kind, *wanted)
    assert [r.variant for r in made.routes] + list(refused) == sorted(
        wanted, key=lambda v: v in refused
    )
    assert all(error.fix and error.why for error in refused.values())
    for route in made.routes:
        before = {made.opening.id}
        for step in route.steps:
            assert set(step.needs) <= before, "a step builds only on what is there"
            before.add(step.id)
        assert ("int8" in route.artefact.id) == (route.variant.precision == "int8")


def test_steps_shared_by_variants_are_the_same_step() -> None:
    made, _ = plan("keras", *ALL)
    by_id = {}
    for step in (s for route in made.routes for s in route.steps):
        assert by_id.setdefault(step.id, step) == step
    assert len(by_id) == 2 + 3 + 3, "two bridges, three conversions, three quantisations"


def test_onnx_needs_no_toolchain_and_keras_needs_one() -> None:
    assert plan("onnx", Variant("openvino", "int8"))[0].toolchains == ()
    assert plan("keras", *ALL)[0].toolchains == ("tf",)


def test_onnx_to_tflite_says_what_is_missing() -> None:
    made, refused = plan("onnx", Variant("tflite", "fp32"))
    assert made.routes == ()
    assert "onnx2tf" in refused[Variant("tflite", "fp32")].why


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
    assert shape[0] == 1
    assert min(shape) > 0


def test_shape_of_a_name_with_equals() -> None:
    assert parse_shape("a=b=1,3,48,320") == ("a=b", (1, 3, 48, 320))


@given(st.text(max_size=12), st.binary(max_size=8))
def test_any_file_is_recognised_or_refused(name: str, head: bytes) -> None:
    try:
        kind = recognise(name, entries=None, head=head)
    except (UsageError, UnsupportedError):
        return
    assert kind.name in {"keras", "onnx"}


@pytest.mark.parametrize("suffix", NOT_YET)
def test_known_but_not_yet(suffix: str) -> None:
    with pytest.raises(UnsupportedError, match="not there yet"):
        recognise(f"model{suffix.upper()}", entries=None, head=b"PK")


def test_a_directory_needs_its_graph() -> None:
    assert recognise("m", entries=frozenset({"saved_model.pb"}), head=b"").name == "saved_model"
    with pytest.raises(UsageError, match=r"saved_model\.pb|SavedModel"):
        recognise("m", entries=frozenset({"variables"}), head=b"")

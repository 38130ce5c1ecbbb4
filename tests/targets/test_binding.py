"""Public tensors to native ones and back; calibration samples against a model."""

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from digits import INPUT
from digits_targets import manifest_for
from edgepack.errors import IntegrityError, UsageError
from edgepack.manifest import Binding as Bound
from edgepack.manifest import Manifest, TensorSpec
from edgepack_targets.binding import Binding, fits, native_layout, shape_text
from edgepack_targets.interface import NativeTensor
from edgepack_targets.samples import Samples


def spec(
    name: str, shape: tuple[int, ...], native: str, permutation: tuple[int, ...] | None = None
) -> TensorSpec:
    bound = Bound(native_name=native, permutation=permutation)
    return TensorSpec(name=name, shape=shape, dtype="float32", binding=bound)


def manifest(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Manifest:
    return msgspec.structs.replace(
        manifest_for("onnx"), inputs=tuple(inputs), outputs=tuple(outputs)
    )


def natives_of(specs: list[TensorSpec]) -> list[NativeTensor]:
    return [
        NativeTensor(
            s.binding.native_name,
            tuple(s.shape[a] for a in s.binding.permutation or range(len(s.shape))),
            s.dtype,
        )
        for s in specs
    ]


@st.composite
def tensors(draw: st.DrawFn) -> tuple[TensorSpec, NDArray[Any]]:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=0, max_size=5)))
    order = draw(st.none() | st.permutations(range(len(shape))))
    array = np.random.default_rng(draw(st.integers(0, 99))).random(shape, np.float32)
    one = spec("x", shape, "native/x:0", tuple(order) if order is not None else None)
    return one, np.asarray(array, np.float32)


@given(tensors())
def test_there_and_back_is_the_same_for_every_permutation(
    drawn: tuple[TensorSpec, NDArray[Any]],
) -> None:
    one, array = drawn
    joined = Binding(manifest([one], [one]), (natives_of([one]), natives_of([one])))
    native = joined.to_native({"x": array})
    assert native.keys() == {"native/x:0"}
    assert native["native/x:0"].shape == natives_of([one])[0].shape
    assert native["native/x:0"].flags.c_contiguous
    assert np.array_equal(joined.to_public(native)["x"], array)


def test_native_is_public_transposed_by_the_permutation() -> None:
    one = spec("x", (1, 3, 4, 5), "n", (0, 2, 3, 1))
    array = np.random.default_rng(0).random((1, 3, 4, 5), np.float32)
    joined = Binding(manifest([one], [one]), (natives_of([one]), natives_of([one])))
    assert np.array_equal(joined.to_native({"x": array})["n"], array.transpose(0, 2, 3, 1))


def test_an_input_that_is_right_already_is_not_copied() -> None:
    one = spec("x", (1, 3), "n")
    joined = Binding(manifest([one], [one]), (natives_of([one]), natives_of([one])))
    array = np.zeros((1, 3), np.float32)
    assert joined.to_native({"x": array})["n"] is array


def test_all_faults_are_told_at_once_with_what_is_expected() -> None:
    inputs = [spec("a", (1, 3), "na"), spec("b", (-1, 2), "nb"), spec("c", (1,), "nc")]
    joined = Binding(manifest(inputs, inputs[:1]), (natives_of(inputs), natives_of(inputs)))
    with pytest.raises(UsageError) as caught:
        joined.to_native(
            {"a": np.zeros((1, 4), np.float32), "b": np.zeros((2, 2)), "z": np.zeros(1)}
        )
    for part in ("`c` is missing", "`z` is unknown", "`a` is float32 (1, 4)", "`b` is float64"):
        assert part in caught.value.why
    assert caught.value.fix == (
        "give exactly a: float32 (1, 3), b: float32 (?, 2), c: float32 (1,)"
    )


@pytest.mark.parametrize(
    "native",
    [
        [],
        [NativeTensor("other", (1, 3), "float32")],
        [NativeTensor("n", (1, 4), "float32")],
        [NativeTensor("n", (1, 3, 1), "float32")],
        [NativeTensor("n", (1, 3), "int8")],
        [NativeTensor("n", (1, 3), "float32"), NativeTensor("more", (1,), "float32")],
    ],
)
def test_a_manifest_of_another_model_is_refused(native: list[NativeTensor]) -> None:
    one = spec("x", (1, 3), "n")
    with pytest.raises(IntegrityError):
        Binding(manifest([one], [one]), (native, natives_of([one])))


def test_outputs_that_nobody_bound_are_left_out() -> None:
    one = spec("x", (1, 3), "n")
    more = [*natives_of([one]), NativeTensor("debug", (9,), "int64")]
    joined = Binding(manifest([one], [one]), (natives_of([one]), more))
    assert joined.output_names == ["n"]


@pytest.mark.parametrize("order", [(0, 1), (0, 0, 1), (1, 2, 3), (0, 1, 2, 3)])
def test_a_binding_that_is_no_permutation_is_refused(order: tuple[int, ...]) -> None:
    one = spec("x", (1, 2, 3), "n", order)
    with pytest.raises(IntegrityError) as caught:
        Binding(manifest([one], [one]), ([], []))
    assert caught.value.reason == "bad_binding"


def test_calibration_gets_the_native_layout_with_or_without_a_batch_axis() -> None:
    samples = np.random.default_rng(0).random((5, 3, 4, 6), np.float32)
    batched = native_layout(spec("x", (1, 3, 4, 6), "n", (0, 2, 3, 1)), samples)
    assert np.array_equal(batched, samples.transpose(0, 2, 3, 1))
    single = native_layout(spec("x", (3, 4, 6), "n", (1, 2, 0)), samples)
    assert np.array_equal(single, samples.transpose(0, 2, 3, 1))


def test_shapes_for_a_person() -> None:
    assert [shape_text(s) for s in ((), (3,), (-1, 2))] == ["()", "(3,)", "(?, 2)"]
    assert fits((4, 2), (-1, 2))
    assert not fits((0, 2), (-1, 2))


IMAGE = NativeTensor(INPUT, (1, 2), "float32")


def test_few_samples_are_all_taken_in_order_and_many_by_seed() -> None:
    arrays = {INPUT: np.arange(20, dtype=np.float32).reshape(10, 2)}
    everyone = [sample[INPUT] for sample in Samples([IMAGE], arrays, 10, seed=3)]
    assert np.array_equal(np.concatenate(everyone), arrays[INPUT])

    def chosen(seed: int) -> list[float]:
        return [float(s[INPUT][0, 0]) for s in Samples([IMAGE], arrays, 4, seed=seed)]

    assert len(chosen(0)) == 4
    assert chosen(0) == chosen(0) == sorted(set(chosen(0)))
    assert len({tuple(chosen(seed)) for seed in range(6)}) > 1


def test_inputs_without_a_batch_axis_are_fed_without_one() -> None:
    native = [NativeTensor("x", (3, 2), "float32"), NativeTensor("s", (), "float32")]
    arrays = {"x": np.zeros((5, 3, 2), np.float32), "s": np.zeros(5, np.float32)}
    first = next(iter(Samples(native, arrays, 9, 0)))
    assert (first["x"].shape, first["s"].shape) == ((3, 2), ())
    with pytest.raises(UsageError):
        Samples(native, arrays | {"s": np.zeros(4, np.float32)}, 9, 0)

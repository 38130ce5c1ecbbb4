"""An image becomes the tensor that the manifest says: colour, size, numbers, layout."""

import io
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from digits import INPUT, digits_data, digits_folder
from digits_targets import manifest_for
from edgepack.errors import UnsupportedError, UsageError
from edgepack.manifest import Binding, Manifest, Preprocess, Resize, TensorSpec
from edgepack_targets.pipeline.preprocess import image_tensor, read_image, resize

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def manifest(
    rule: Preprocess | None = None,
    shape: tuple[int, ...] = (1, 4, 6, 3),
    layout: str | None = "NHWC",
    dtype: str = "float32",
) -> Manifest:
    spec = TensorSpec(
        name="x", shape=shape, dtype=dtype, layout=layout, binding=Binding(native_name="x")
    )
    rule = rule or Preprocess(input="x")
    return msgspec.structs.replace(manifest_for("onnx"), inputs=(spec,), preprocess=rule)


def halves(left: tuple[int, int, int], right: tuple[int, int, int]) -> Image.Image:
    """Return an 8 x 4 image of two colours."""
    image = Image.new("RGB", (8, 4), left)
    image.paste(right, (4, 0, 8, 4))
    return image


def test_a_digit_from_a_file_is_bit_for_bit_the_training_input(tmp_path: Path) -> None:
    files = sorted(digits_folder(tmp_path / "digits", 8).iterdir())
    expected = digits_data()[1].head(8).inputs
    for file, image in zip(files, expected, strict=True):
        name, tensor = image_tensor(manifest_for("onnx"), read_image(file))
        assert name == INPUT
        assert np.array_equal(tensor, image[None])


@pytest.mark.parametrize(
    ("color", "expected"), [("rgb", (1, 0.5, 0)), ("bgr", (0, 0.5, 1)), ("gray", (0.592,))]
)
def test_colour_order(color: str, expected: tuple[float, ...]) -> None:
    rule = Preprocess(input="x", color=color)
    shape = (1, 4, 6, len(expected))
    _, tensor = image_tensor(manifest(rule, shape), Image.new("RGB", (9, 9), (255, 127, 0)))
    assert tensor.shape == shape
    assert np.allclose(tensor[0, 0, 0], expected, atol=0.01)


def test_layouts_hold_the_same_pixels() -> None:
    image = halves(RED, BLUE)
    _, last = image_tensor(manifest(), image)
    _, first = image_tensor(manifest(shape=(1, 3, 4, 6), layout="NCHW"), image)
    _, guessed = image_tensor(manifest(shape=(1, 3, 4, 6), layout=None), image)
    assert np.array_equal(first.transpose(0, 2, 3, 1), last)
    assert np.array_equal(first, guessed)
    assert all(tensor.flags.c_contiguous for tensor in (first, last))


def test_mean_and_std_are_in_units_after_the_scale() -> None:
    rule = Preprocess(input="x", scale=255.0, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    _, tensor = image_tensor(manifest(rule), Image.new("RGB", (6, 4), (255, 255, 255)))
    assert np.allclose(tensor[0, 1, 1], ((1 - 0.5) / 0.5, (1 - 0.25) / 0.25, 0.5))


def test_integer_inputs_get_rounded_and_clipped_numbers() -> None:
    rule = Preprocess(input="x", scale=1.0)
    image = Image.new("RGB", (6, 4), (255, 128, 1))
    _, tensor = image_tensor(manifest(rule, dtype="uint8"), image)
    assert tensor.dtype == np.uint8
    assert tuple(tensor[0, 0, 0]) == (255, 128, 1)
    _, tensor = image_tensor(manifest(rule, dtype="int8"), image)
    assert tuple(tensor[0, 0, 0]) == (127, 127, 1)


def test_letterbox_keeps_the_whole_image_and_pads_evenly() -> None:
    canvas = resize(halves(RED, BLUE), 8, 8, Resize(mode="letterbox", interpolation="nearest"))
    pixels = np.asarray(canvas)
    assert (pixels[:2] == 114).all()
    assert (pixels[6:] == 114).all()
    assert (pixels[2:6, :4] == RED).all()
    assert (pixels[2:6, 4:] == BLUE).all()


def test_crop_fills_the_canvas_and_keeps_the_middle() -> None:
    image = Image.new("RGB", (12, 4), RED)
    image.paste(GREEN, (4, 0, 8, 4))
    canvas = resize(image, 4, 4, Resize(mode="crop", interpolation="nearest"))
    assert (np.asarray(canvas) == GREEN).all()


@given(
    st.sampled_from(["stretch", "letterbox", "crop"]),
    st.sampled_from(["nearest", "bilinear", "bicubic"]),
    st.tuples(*[st.integers(1, 60)] * 4),
    st.sampled_from(["L", "RGB"]),
)
def test_every_image_gets_exactly_the_size(
    mode: str, interpolation: str, sizes: tuple[int, int, int, int], color: str
) -> None:
    width, height, to_width, to_height = sizes
    rule = Resize(mode=mode, interpolation=interpolation, pad=7)
    canvas = resize(Image.new(color, (width, height), 200 if color == "L" else RED), to_width,
                    to_height, rule)  # fmt: skip
    assert canvas.size == (to_width, to_height)
    if mode != "letterbox":
        wanted = 200 if color == "L" else RED
        assert (np.asarray(canvas) == wanted).all(), "a single colour stays one"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_modes_of_8_bits_are_taken(mode: str) -> None:
    assert image_tensor(manifest(), Image.new(mode, (5, 5)))[1].shape == (1, 4, 6, 3)


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_deeper_images_are_refused_not_clipped(mode: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        image_tensor(manifest(), Image.new(mode, (5, 5)))
    assert mode in caught.value.what


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((1, 4, 6, 4), "NHWC"),
        ((1, -1, -1, 3), "NHWC"),
        ((2, 4, 6, 3), "NHWC"),
        ((1, 72), None),
        ((1, 4, 6, 3), "NCHW"),
    ],
)
def test_inputs_that_are_no_image_are_refused(shape: tuple[int, ...], layout: str | None) -> None:
    with pytest.raises(UnsupportedError) as caught:
        image_tensor(manifest(shape=shape, layout=layout), halves(RED, BLUE))
    assert caught.value.reason == "no_image_input"


def test_a_manifest_without_preprocessing_says_so() -> None:
    bare = msgspec.structs.replace(manifest(), preprocess=None)
    with pytest.raises(UnsupportedError) as caught:
        image_tensor(bare, halves(RED, BLUE))
    assert caught.value.reason == "no_preprocess"


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def test_files_that_are_no_images_are_one_error(tmp_path: Path) -> None:
    good = png(halves(RED, BLUE))
    assert read_image(good).size == (8, 4)
    for content in (b"", b"GIF89a", b"no image", good[: len(good) // 2], good[:40]):
        (tmp_path / "x.png").write_bytes(content)
        for source in (content, tmp_path / "x.png"):
            with pytest.raises(UsageError):
                read_image(source)
    with pytest.raises(UsageError):
        read_image(tmp_path / "none.png")


def test_a_thin_image_does_not_fill_the_memory_when_cut() -> None:
    thin = Image.new("RGB", (1, 60_000))
    with pytest.raises(UsageError, match="too long and thin"):
        resize(thin, 224, 224, Resize(mode="crop"))
    assert resize(thin, 224, 224, Resize(mode="letterbox")).size == (224, 224)
    assert resize(Image.new("RGB", (10, 3000)), 224, 224, Resize(mode="crop")).size == (224, 224)


def test_an_image_that_would_fill_the_memory_is_refused() -> None:
    header = png(Image.new("L", (1, 1)))
    huge = bytearray(header)
    huge[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(UsageError):
        read_image(bytes(huge))


@given(st.binary(max_size=60), st.integers(0, 80), st.integers(0, 80))
def test_damaged_images_never_crash(noise: bytes, place: int, cut: int) -> None:
    data = bytearray(png(halves(RED, BLUE)))
    data[place : place + len(noise)] = noise
    try:
        read_image(bytes(data[: len(data) - cut]))
    except UsageError:
        return


@given(
    st.sampled_from(["rgb", "bgr", "gray"]),
    st.sampled_from([1.0, 255.0, 127.5, 0.1]),
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    st.lists(st.floats(0.1, 3), min_size=3, max_size=3),
    st.booleans(),
)
def test_pixels_are_bit_for_bit_what_the_formula_gives(
    color: Any, scale: float, mean: list[float], std: list[float], one: bool
) -> None:
    count = 1 if one or color == "gray" else 3
    rule = Preprocess(
        input="x", color=color, scale=scale, mean=tuple(mean[:count]), std=tuple(std[:count])
    )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8))
    channels = 1 if color == "gray" else 3
    _, tensor = image_tensor(manifest(rule, (1, 4, 6, channels)), image)
    raw = np.asarray(image.convert("L" if color == "gray" else "RGB"), np.float32)
    raw = raw.reshape(4, 6, channels)[:, :, :: -1 if color == "bgr" else 1]
    of, by = np.asarray(rule.mean, np.float32), np.asarray(rule.std, np.float32)
    assert np.array_equal(tensor[0], (raw / np.float32(scale) - of) / by)

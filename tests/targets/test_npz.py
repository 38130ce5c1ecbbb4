"""The npz reader takes numbers that fit the model and nothing else, whatever the bytes."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from digits import INPUT, calibration_npz, evaluation_npz
from digits_targets import manifest_for
from edgepack.errors import UsageError
from edgepack.manifest import Binding, TensorSpec
from edgepack_targets.pipeline.npz import read_arrays, read_npz, sample_shape

SPECS = manifest_for("onnx").inputs
GOOD = np.zeros((3, 1, 16, 16), np.float32)


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def refused(path: Path, **options: object) -> UsageError:
    with pytest.raises(UsageError) as caught:
        read_npz(path, SPECS, **options)
    assert caught.value.exit_code == 2
    return caught.value


def test_good_files_come_back_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npz", image=GOOD + 0.5)
    assert np.array_equal(read_npz(path, SPECS)[INPUT], GOOD + 0.5)
    assert read_npz(calibration_npz(tmp_path / "c.npz"), SPECS)[INPUT].shape == (200, 1, 16, 16)
    both = read_npz(evaluation_npz(tmp_path / "e.npz"), SPECS, labels=True)
    assert both["labels"].shape == (540,)


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        ({"img": GOOD}, "`image` is missing"),
        ({"image": GOOD, "other": GOOD}, "`other` is unknown"),
        ({"image": GOOD.transpose(0, 2, 3, 1)}, "(3, 16, 16, 1)"),
        ({"image": GOOD[..., :8]}, "(3, 1, 16, 8)"),
        ({"image": GOOD[0]}, "(1, 16, 16)"),
        ({"image": GOOD.astype(np.float64)}, "float64"),
        ({"image": (GOOD * 255).astype(np.uint8)}, "uint8"),
        ({"image": GOOD[:0]}, "no samples"),
        ({"image": np.full_like(GOOD, np.nan)}, "NaN"),
        ({"image": np.full_like(GOOD, np.inf)}, "infinite"),
        ({"image": np.float32(1)}, "()"),
        ({}, "missing"),
    ],
)
def test_what_does_not_fit_is_one_error_that_says_what_is_expected(
    tmp_path: Path, arrays: dict[str, np.ndarray], fault: str
) -> None:
    error = refused(write(tmp_path / "x.npz", **arrays), what="calibration")
    assert fault in error.why
    assert error.fix == "give exactly image: float32 (samples, 1, 16, 16)"
    assert error.reason == "bad_calibration"
    assert str(tmp_path / "x.npz") in error.what


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        (None, "`labels` is missing"),
        (np.zeros(2, np.int64), "`labels` holds 2 samples"),
        (np.zeros(3), "float64"),
        (np.zeros((3, 1), np.int64), "(3, 1)"),
    ],
)
def test_labels_are_checked(tmp_path: Path, labels: np.ndarray | None, fault: str) -> None:
    arrays = {"image": GOOD} | ({} if labels is None else {"labels": labels})
    error = refused(write(tmp_path / "x.npz", **arrays), what="exam", labels=True)
    assert fault in error.why


def test_too_many_samples_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npz", image=GOOD)
    assert "more than the 2" in refused(path, max_samples=2).why
    assert read_npz(path, SPECS, max_samples=3)


def test_a_large_content_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, image=np.zeros((50_000, 1, 16, 16), np.float32))
    assert path.stat().st_size < 1 << 20
    assert "more than the 1000000 allowed" in refused(path, max_bytes=1_000_000).why


def test_a_header_that_promises_too_much_takes_no_memory(tmp_path: Path) -> None:
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1, 16, 16), }"
    entry = b"\x93NUMPY\x01\x00" + (len(head)).to_bytes(2, "little") + head
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("image.npy", entry)
    assert "does not hold" in refused(tmp_path / "x.npz").why


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, image=np.array([{"an": "object"}], dtype=object))
    assert "not numbers" in refused(path).why


def test_names_that_are_no_arrays_or_twice_are_refused(tmp_path: Path) -> None:
    entry = io.BytesIO()
    np.lib.format.write_array(entry, GOOD)
    with zipfile.ZipFile(tmp_path / "odd.npz", "w") as archive:
        archive.writestr("image.npy", entry.getvalue())
        archive.writestr("run.sh", b"")
    assert "run.sh" in refused(tmp_path / "odd.npz").why
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("image.npy", entry.getvalue())
        archive.writestr("imagf.npy", entry.getvalue())
    (tmp_path / "twice.npz").write_bytes(data.getvalue().replace(b"imagf", b"image"))
    assert "two arrays of one name" in refused(tmp_path / "twice.npz").why


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x05\x06" + b"\0" * 18])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    refused(tmp_path / "x.npz")
    refused(tmp_path / "there-is-none.npz")
    refused(tmp_path)


def test_big_endian_and_fortran_order_are_brought_to_ours(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(512, dtype=">f4").reshape(2, 1, 16, 16))
    read = read_npz(write(tmp_path / "x.npz", image=array), SPECS)[INPUT]
    assert np.array_equal(read, array)
    assert read.dtype == np.float32
    assert read.flags.c_contiguous


def test_inputs_without_a_batch_axis_get_one_for_the_samples() -> None:
    spec = TensorSpec(name="x", shape=(4, 2), dtype="float32", binding=Binding(native_name="x"))
    assert sample_shape(spec) == (4, 2)
    assert sample_shape(SPECS[0]) == (1, 16, 16)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damage_is_an_error_or_harmless_never_a_crash(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(write(tmp_path / "good.npz", image=GOOD).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 200) | st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    path = tmp_path / "bad.npz"
    path.write_bytes(bytes(content[:cut]))
    try:
        arrays = read_arrays(path)
    except UsageError:
        return
    assert all(array.dtype.kind in "fiub" for array in arrays.values())

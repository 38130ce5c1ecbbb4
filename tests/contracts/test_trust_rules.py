"""Which models a device may run, as pure rules over what two repositories say."""

import dataclasses
import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.metadata import DelegatedRole

import bundles
from edgepack.trust import (
    DeviceFacts,
    DirectorWord,
    ImageWord,
    TargetInfo,
    TrustError,
    cross_check,
    exam_path,
    exam_target,
    line_paths,
    misfit,
    model_path,
    model_target,
    parse_model_path,
)

FACTS = DeviceFacts({"onnx": "1.23.2"}, "x86_64", frozenset({"avx2"}))
names = st.from_regex(r"[a-z0-9](?:[a-z0-9._-]{0,10}[a-z0-9])?", fullmatch=True)
versions = st.builds(
    "{}.{}.{}{}".format,
    *[st.integers(0, 999)] * 3,
    st.sampled_from(["", "-rc.1", "+build.7", "-a+b"]),
)
variants = st.sampled_from(["onnx-int8", "openvino-fp16", "tflite-w8-x86_64-aarch64"])


def custom(**fields: Any) -> dict[str, Any]:
    facts = {
        "v": 1,
        "kind": "model",
        "name": "digits",
        "version": "1.0.0",
        "runtime": "onnx",
        "precision": "int8",
        "arch": [],
        "cpu_features": [],
        "min_runtime": "1.23",
        "epoch": 0,
    }
    return facts | fields


def target(**fields: Any) -> TargetInfo:
    facts = custom(**fields)
    arch = "".join(f"-{name}" for name in facts["arch"])
    variant = f"{facts['runtime']}-{facts['precision']}{arch}"
    path = f"models/{facts['name']}/{facts['version']}/{variant}.json"
    return TargetInfo(path, "ab" * 32, 700, facts)


def reason(*args: Any, **more: Any) -> str:
    with pytest.raises(TrustError) as caught:
        cross_check(*args, **({"epoch_floor": 0} | more))
    assert caught.value.exit_code == 3
    return caught.value.reason


@given(names, versions, variants)
def test_a_path_says_name_version_and_variant(name: str, version: str, variant: str) -> None:
    path = model_path(name, version, variant)
    assert parse_model_path(path) == (name, version, variant)
    role = DelegatedRole("line", [], 1, True, line_paths(name))
    assert role.is_delegated_path(path)
    assert role.is_delegated_path(exam_path(name))


@given(st.text(alphabet=string.printable, max_size=60))
def test_nothing_else_is_a_path(text: str) -> None:
    with pytest.raises(TrustError, match="not the path of a model"):
        parse_model_path(f"models/{text}")


@given(names, names, versions)
def test_a_line_reaches_no_other_line(mine: str, other: str, version: str) -> None:
    role = DelegatedRole("line", [], 1, True, line_paths(mine))
    path = model_path(other, version, "onnx-int8")
    assert role.is_delegated_path(path) == (mine == other)


@pytest.mark.parametrize(
    "path",
    [
        "models/digits/1.0.0/../onnx-int8.json",
        "models/../1.0.0/onnx-int8.json",
        "models/digits/1.0/onnx-int8.json",
        "models/digits/1.0.0/onnx-int8",
        "models/digits/1.0.0/onnx-int8.json\n",
        "models/digits\n/1.0.0/onnx-int8.json",
        "models/*/1.0.0/onnx-int8.json",
        "models/digits/exam.npz",
        "/models/digits/1.0.0/onnx-int8.json",
        "",
    ],
)
def test_what_could_be_misread_is_no_path(path: str) -> None:
    with pytest.raises(TrustError):
        parse_model_path(path)


def test_a_bundle_is_the_target_its_publisher_signs() -> None:
    found = model_target(bundles.manifest(security_epoch=3), b"the image manifest")
    assert found.path == "models/digits/1.0.0/onnx-int8.json"
    assert (found.size, found.model.epoch) == (18, 3)
    assert json.loads(json.dumps(found.custom)) == found.custom


def test_both_agree_and_it_fits() -> None:
    exam = exam_target("digits", b"npz", 0.85, 64)
    approved = cross_check(
        target(epoch=2), ImageWord(target(epoch=2), exam, 2), FACTS, epoch_floor=1
    )
    assert (approved.name, approved.version, approved.epoch) == ("digits", "1.0.0", 2)
    assert approved.exam is not None
    assert approved.exam.min_score == 0.85
    assert approved.exam.path == "models/digits/exam.npz"


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(target(), sha256="cd" * 32),
        dataclasses.replace(target(), size=701),
        dataclasses.replace(target(), custom=custom(min_runtime="1.0")),
        dataclasses.replace(target(), custom=custom(epoch=9)),
        dataclasses.replace(target(), custom=custom() | {"extra": 1}),
        target(version="1.0.1"),
    ],
)
def test_any_difference_is_a_mismatch(other: TargetInfo) -> None:
    assert reason(other, ImageWord(target(), None, 0), FACTS) == "mismatch"


def test_what_the_publisher_does_not_know_does_not_run() -> None:
    assert reason(target(), ImageWord(None, None, 0), FACTS) == "not_in_image_repo"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"arch": ["aarch64"]}, "wrong_hardware"),
        ({"cpu_features": ["avx2", "avx512_vnni"]}, "wrong_hardware"),
        ({"runtime": "tflite"}, "wrong_runtime"),
        ({"min_runtime": "1.24"}, "wrong_runtime"),
        ({"min_runtime": "1.23.3"}, "wrong_runtime"),
        ({"min_runtime": "2"}, "wrong_runtime"),
    ],
)
def test_what_does_not_fit_does_not_run(fields: dict[str, Any], why: str) -> None:
    both = target(**fields)
    assert reason(both, ImageWord(both, None, 0), FACTS) == why


@pytest.mark.parametrize(
    ("needed", "installed"),
    [("1.23", "1.23.2"), ("1.23.0", "1.23"), ("2025.4", "2025.4.0-20398-abc"), ("1.9", "1.10.0")],
)
def test_versions_compare_as_numbers(needed: str, installed: str) -> None:
    facts = DeviceFacts({"onnx": installed}, "x86_64")
    assert misfit(target(min_runtime=needed).model, facts) is None


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_an_epoch_below_either_floor_does_not_run(epoch: int, signed: int, own: int) -> None:
    both = target(epoch=epoch)
    word = ImageWord(both, None, signed)
    if epoch >= max(signed, own):
        assert cross_check(both, word, FACTS, epoch_floor=own).epoch == epoch
    else:
        assert reason(both, word, FACTS, epoch_floor=own) == "epoch_below_floor"


@pytest.mark.parametrize(
    "facts",
    [
        custom(v=2),
        custom(kind="other"),
        custom(needs_gpu=True),
        custom(epoch=-1),
        custom(epoch="0"),
        custom(name="Digits"),
        custom(arch="x86_64"),
        {},
    ],
)
def test_facts_that_cannot_be_read_are_requirements_that_cannot_be_met(facts: Any) -> None:
    both = dataclasses.replace(target(), custom=facts)
    assert reason(both, ImageWord(both, None, 0), FACTS) == "bad_custom"


def test_facts_of_one_path_do_not_serve_another() -> None:
    both = dataclasses.replace(target(), path="models/digits/1.0.0/onnx-fp32.json")
    assert reason(both, ImageWord(both, None, 0), FACTS) == "bad_custom"


def test_an_exam_is_not_a_model_nor_a_model_an_exam() -> None:
    exam = exam_target("digits", b"npz", 0.5, 1)
    assert reason(exam, ImageWord(exam, None, 0), FACTS) == "bad_custom"
    assert reason(target(), ImageWord(target(), target(), 0), FACTS) == "bad_custom"


@pytest.mark.parametrize(
    ("word", "why"),
    [
        (DirectorWord("cam-2", (target(),), delegates=False), "wrong_device"),
        (DirectorWord("", (), delegates=False), "wrong_device"),
        (DirectorWord("cam-1", (target(), target()), delegates=False), "mismatch"),
        (DirectorWord("cam-1", (), delegates=True), "mismatch"),
    ],
)
def test_the_director_speaks_to_one_device_of_one_model(word: DirectorWord, why: str) -> None:
    with pytest.raises(TrustError) as caught:
        word.wanted("cam-1")
    assert caught.value.reason == why


def test_the_director_may_want_nothing() -> None:
    assert DirectorWord("cam-1", (), delegates=False).wanted("cam-1") is None


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_no_facts_crash_the_check(facts: Any) -> None:
    both = dataclasses.replace(target(), custom=facts)
    assert reason(both, ImageWord(both, None, 0), FACTS) == "bad_custom"

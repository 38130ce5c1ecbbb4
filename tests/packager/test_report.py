"""What people share about a build: the report, the page, the receipt, and where budgets count."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgepack.errors import AccuracyError, BudgetError, UsageError
from edgepack_packager.adapters.profile import read_profiles
from edgepack_packager.adapters.reports import write_page
from edgepack_packager.cli.receipt import print_receipt
from edgepack_packager.core.budget import Profile, Verdict, judge
from edgepack_packager.core.crosscheck import Crossed
from edgepack_packager.core.holdout import Paired
from edgepack_packager.core.paired import p_value, paired_sentence
from edgepack_packager.core.proof import Measured, Parity
from edgepack_packager.core.recipe import Budgets, Variant
from edgepack_packager.core.report import (
    About,
    BuildResult,
    Built,
    Failed,
    Score,
    Source,
    best_of,
    report_document,
)
from edgepack_packager.core.report_page import report_markdown, report_svg
from edgepack_targets.interface import Layer

FP32 = Measured(2.0, 2.5, 4_000_000, 90.0)
INT8 = Measured(0.9, 1.1, 1_100_000, 80.0)
HOST = {"machine": "x86_64", "system": "Linux", "cpu": "Some CPU", "cpus": 2}
ABOUT = About(
    name="digits",
    version="1.2.0",
    source=Source("digits.onnx", "onnx", "a" * 64),
    command=("edgepack", "build", "my digits.onnx", "--target", "openvino"),
    compression=({"kind": "distil", "accuracy": 0.97, "control": 0.962},),
    tools={"nncf": "3.0"},
    max_drop=0.01,
    calibration=200,
)


def built(target: str = "openvino", precision: str = "int8", **facts: Any) -> Built:
    said: dict[str, Any] = {
        "variant": Variant(target, precision),
        "path": f"dist/digits-1.2.0-{target}-{precision}.edgepack",
        "digest": "sha256:" + "0" * 64,
        "size_bytes": 1_200_000,
        "parity": Parity(0.5, 0.999),
        "measured": INT8 if precision == "int8" else FP32,
        "fp32": FP32,
        "score": Score("top1", 0.9685, 0.9667, 540),
        "paired": Paired(2, 1, 540),
        "effective": {"precision": "f32", "device": "CPU"},
        "applied": {"int8_share": 0.99},
        "extra": {"load": 1.0, "first": 2.0, "throughput": 3.0},
    }
    return Built(**(said | facts))


def page(*all_built: Built, failed: tuple[Failed, ...] = ()) -> str:
    result = BuildResult(all_built, failed)
    return report_markdown(result, host=HOST, warnings=["few"], about=ABOUT, picture="p.svg")


# -- counts


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        (Paired(2, 1, 540), "int8 costs 1 of 540 images (2 lost, 1 gained)"),
        (Paired(0, 3, 540), "int8 gains 3 of 540 images (0 lost, 3 gained)"),
        (Paired(2, 2, 540), "int8 costs none of 540 images (2 lost, 2 gained)"),
        (Paired(0, 0, 540), "int8 changes none of 540 images"),
    ],
)
def test_a_drop_is_told_in_samples(pair: Paired, told: str) -> None:
    assert paired_sentence(pair, "int8", "images") == told


def test_p_value_is_that_of_the_exact_test() -> None:
    assert p_value(Paired(10, 0, 100)) == pytest.approx(2 / 1024)
    assert p_value(Paired(3, 3, 100)) == 1.0
    assert p_value(Paired(0, 0, 100)) == 1.0
    # binomtest(1, 9).pvalue of scipy
    assert p_value(Paired(8, 1, 100)) == pytest.approx(0.0390625)


# -- report


def test_report_holds_what_was_done_and_how_it_is_known() -> None:
    layers = (Layer("conv", "Conv", 0.25),)
    said = report_document(
        built(layers=layers, settings={"method": "static"}), host=HOST, warnings=["few"],
        about=ABOUT,
    )  # fmt: skip
    assert said["bundle"] == "digits@1.2.0"
    assert said["evaluation"] == {"samples": 540, "one_is": 1 / 540}
    assert said["paired"]["lost"] == 2
    assert said["layers"] == [{"name": "conv", "operator": "Conv", "loss": 0.25}]
    assert said["compression"][0]["control"] == 0.962
    assert said["command"][-1] == "openvino"
    assert said["measured_on"] == {"machine": "x86_64", "native": True, "note": ""}
    json.dumps(said, allow_nan=False)


def test_numbers_of_another_architecture_are_flagged() -> None:
    foreign = built("onnx-mobile", arch=("aarch64",))
    said = report_document(foreign, host=HOST, warnings=[], about=ABOUT)
    assert said["measured_on"]["native"] is False
    assert "made for aarch64" in said["warnings"][-1]
    assert "made for aarch64" in page(foreign)


def test_best_is_the_fastest_that_keeps_the_accuracy() -> None:
    plain, small = built(precision="fp32"), built()
    bad = built("onnx", measured=Measured(0.1, 0.1, 1, 1), score=Score("top1", 0.97, 0.9, 540))
    assert best_of(BuildResult((plain, small, bad), ())) is small
    assert best_of(BuildResult((plain, small, bad), ()), 0.2) is bad
    assert best_of(BuildResult((built(score=None),), ())) is None
    foreign = built("onnx-mobile", arch=("aarch64",), measured=Measured(0.1, 0.1, 1, 1))
    assert best_of(BuildResult((small, foreign), ()), machine="x86_64") is small
    assert best_of(BuildResult((small, foreign), ()), machine="aarch64") is foreign


# -- page


def test_page_has_everything_a_reader_asks() -> None:
    why = AccuracyError("the metric fell by 0.2", why="a | b", fix="--auto", reason="max_drop")
    text = page(built(precision="fp32"), built(), failed=(Failed(Variant("tflite", "int8"), why),))
    for fact in (
        "# digits 1.2.0", "![Quality", "(p.svg)", "2 of 3 variants", "**openvino int8** (best)",
        "costs 1 of 540 samples", "0.28 x", "0.45 x", "2 / 1", "## Not built", "a &#124; b",
        "control 0.962", "540 samples, one is 0.0019", "'my digits.onnx'", "| nncf | 3.0 |",
        "Some CPU", "- few", "Calibration: 200 samples",
    ):  # fmt: skip
        assert fact in text, fact


def test_page_says_what_is_worse() -> None:
    slow = built(measured=Measured(3.0, 3.5, 5_000_000, 80.0))
    text = page(slow)
    assert "**1.50 x (worse)**" in text
    assert "**1.25 x (worse)**" in text
    assert "slower than fp32" in text


def test_names_cannot_break_the_page() -> None:
    strange = replace(built(), applied={"a|b": "<script>\n# x"})
    text = page(strange)
    assert "<script>" not in text
    assert "\n# x" not in text


def test_every_table_row_has_as_many_cells_as_its_head() -> None:
    text = page(built(precision="fp32"), built())
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in rows if "openvino" in line or "variant" in line} == {13}


def test_picture_of_a_build_without_evaluation_shows_the_cosine() -> None:
    bare = built(score=None, paired=None)
    svg = report_svg(BuildResult((bare,), ()), host=HOST, about=ABOUT)
    assert svg
    assert "lowest cosine to the source" in svg
    assert report_svg(BuildResult((), ()), host=HOST, about=ABOUT) is None
    assert "not measured" in page(bare)


def test_page_and_picture_go_beside_the_bundles(tmp_path: Path) -> None:
    result = BuildResult((built(),), ())
    page_path, svg = write_page(tmp_path, result, host=HOST, warnings=[], about=ABOUT)
    assert (page_path.name, svg.name) == ("digits-1.2.0.report.md", "digits-1.2.0.report.svg")
    assert f"({svg.name})" in page_path.read_text()
    assert svg.read_text().startswith("<svg")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        write_page(tmp_path / "file" / "x", result, host=HOST, warnings=[], about=ABOUT)


# -- receipt


def test_receipt_marks_the_best_and_says_the_cost(capsys: pytest.CaptureFixture[str]) -> None:
    slow = built("onnx", measured=Measured(3.0, 3.5, 1_000_000, 80.0), path="dist/[red]x.edgepack")
    print_receipt(BuildResult((built(precision="fp32"), built(), slow), ()))
    out, err = capsys.readouterr()
    assert out == ""
    (best,) = [line for line in err.splitlines() if line.startswith("\u2605  openvino int8")]
    assert "1,100.0 kB (0.28 x)" in best
    assert "openvino int8 costs 1 of 540 samples (2 lost, 1 gained)" in err
    assert "onnx int8: slower than fp32 here (1.50 x)" in err
    assert "dist/[red]x.edgepack" in err


def test_receipt_says_once_where_budgets_were_judged(capsys: pytest.CaptureFixture[str]) -> None:
    here = Verdict("host", "x86_64", 0.9, 80.0)
    there = Verdict("device", "aarch64", 12.0, 200.0, "digits@1.1.0", "sha256:dev")
    rows = (built(verdict=here), built("onnx", verdict=here), built("tflite", verdict=there))
    print_receipt(BuildResult(rows, ()))
    err = capsys.readouterr().err
    assert "budget of openvino int8, onnx int8: measured on this host (x86_64), not on" in err
    assert "tflite int8: measured on a device (aarch64) with digits@1.1.0, which is not" in err
    assert "Budget: tflite int8: measured on a device" in page(*rows)


# -- budgets


DEVICE = Profile("digits@1.1.0", "sha256:dev", "openvino", "int8", 12.0, 200.0, "aarch64, A76")


def verdict(limit: float, *profiles: Profile, **more: Any) -> Any:
    return judge(
        INT8, FP32, Budgets(max_latency_ms=limit, **more), name="digits",
        variant=Variant("openvino", "int8"), machine="x86_64", profiles=profiles,
    )  # fmt: skip


def test_without_a_profile_the_host_counts_and_is_named() -> None:
    found = verdict(1.0)
    assert (found.judged_on, found.latency_ms) == ("host", 0.9)
    with pytest.raises(BudgetError, match=r"0\.9 ms") as caught:
        verdict(0.5)
    assert "this host (x86_64), not on a device" in caught.value.why


def test_a_profile_of_this_variant_counts_instead() -> None:
    with pytest.raises(BudgetError, match="12 ms") as caught:
        verdict(1.0, DEVICE)
    assert "aarch64, A76" in caught.value.why
    assert "digits@1.1.0" in caught.value.why
    found = verdict(20, DEVICE)
    assert found.judged_on == "device"
    assert not found.of("sha256:other")
    assert found.of("sha256:dev")


@pytest.mark.parametrize(
    "other", [{"target": "onnx"}, {"precision": "fp32"}, {"bundle": "faces@1.1.0"}]
)
def test_a_profile_of_something_else_does_not_count(other: dict[str, str]) -> None:
    assert verdict(1.0, replace(DEVICE, **other)).judged_on == "host"


def test_slower_is_judged_on_the_device_if_both_were_measured_there() -> None:
    assert verdict(20, DEVICE, fail_if_slower=True).judged_on == "device"
    plain = replace(DEVICE, precision="fp32", latency_ms=10.0)
    with pytest.raises(BudgetError, match="12 ms against 10 ms"):
        verdict(20, DEVICE, plain, fail_if_slower=True)


def test_without_a_limit_nothing_is_said_about_budgets() -> None:
    found = judge(
        INT8, FP32, Budgets(max_size_mb=9), name="digits", variant=Variant("openvino", "int8"),
        machine="x86_64",
    )  # fmt: skip
    assert not found.limited
    said = report_document(built(verdict=found), host=HOST, warnings=[], about=ABOUT)
    assert said["budget"] is None
    assert "Budget:" not in page(built(verdict=found))
    assert verdict(20).limited


def test_page_tells_only_what_is_unusual_of_a_quantisation() -> None:
    how = {"precision": "int8", "method": "static", "per_channel": True, "ranges": "entropy",
           "smooth": False, "exclude": ["conv"], "seed": 0}  # fmt: skip
    text = page(built(settings=how))
    assert "openvino int8: precision int8, method static, ranges entropy, exclude conv." in text


def test_page_shows_the_pairs_that_are_least_alike() -> None:
    pair = Crossed(Variant("onnx", "int8"), Variant("tflite", "int8"), Parity(0.5, 0.98), 540, 3)
    result = BuildResult((built(),), (), crossed=(pair,))
    text = report_markdown(result, host=HOST, about=ABOUT)
    assert "| onnx int8, tflite int8 | 3 of 540 | 0.980000 |" in text


def test_size_is_the_same_everywhere() -> None:
    with pytest.raises(BudgetError, match=r"model size is 1\.1 MB"):
        verdict(20, DEVICE, max_size_mb=1.0)


def benchmark_said(**changed: Any) -> dict[str, Any]:
    run = {
        "load_ms": 1.0, "first_ms": 1.0, "latency_ms": {"p50": 12.0, "p95": 14.0},
        "throughput_per_s": 80.0, "peak_rss_mb": 200.0,
    }  # fmt: skip
    return (
        {
            "schema": "edgepack.benchmark/v1", "bundle": "digits@1.1.0", "digest": "sha256:dev",
            "target": "openvino", "precision": "int8", "threads": None,
            "runs": [run | {"inferences": 9}],
            "effective": {
                "runtime": "openvino", "version": "1", "precision": "f32", "device": "CPU",
                "threads": 4,
            },
            "host": {
                "machine": "aarch64", "system": "Linux", "cpu": "A76", "cpus": 4,
                "memory_mb": 4000, "cpu_features": [],
            },
        }
        | run
        | changed
    )  # fmt: skip


def test_profile_is_what_the_device_printed(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(benchmark_said()))
    assert read_profiles(path) == (DEVICE,)
    path.write_text(json.dumps([benchmark_said(), benchmark_said(precision="fp32")]))
    assert [p.precision for p in read_profiles(path)] == ["int8", "fp32"]


def test_report_of_another_build_is_a_profile_too(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    said = report_document(built(), host=HOST, warnings=[], about=ABOUT)
    path.write_text(json.dumps(said))
    (found,) = read_profiles(path)
    assert (found.bundle, found.latency_ms, found.machine) == (
        "digits@1.2.0", 0.9, "x86_64, Some CPU",
    )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[1]", "{}", '{"schema": "edgepack.build/v1"}',
        json.dumps(benchmark_said(peak_rss_mb="much")),
        json.dumps(benchmark_said(peak_rss_mb=0.0)),
        json.dumps({k: v for k, v in benchmark_said().items() if k != "host"}),
        json.dumps(benchmark_said(latency_ms={"p50": float("nan"), "p95": 1.0})),
    ],
)  # fmt: skip
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="is no profile") as caught:
        read_profiles(path)
    assert caught.value.why
    assert "edgepack-agent benchmark" in caught.value.fix


def test_missing_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no profile"):
        read_profiles(tmp_path / "none.json")

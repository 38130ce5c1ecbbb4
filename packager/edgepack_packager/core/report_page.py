"""One page about a build, for people: `report.md` and the points of its picture. Pure text."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from edgepack_packager.core.paired import paired_sentence
from edgepack_packager.core.pareto import Point, pareto_svg
from edgepack_packager.core.report import (
    About,
    BuildResult,
    Built,
    best_of,
    budget_notes,
    measured_elsewhere,
)
from edgepack_targets.interface import Quantization

__all__ = ["report_markdown", "report_svg"]

SLOWER = 1.05
LAYERS = 8


def report_svg(result: BuildResult, *, host: Mapping[str, Any], about: About) -> str | None:
    """Return the picture of a build; None if nothing was built."""
    if not result.built:
        return None
    best = best_of(result, about.max_drop, _machine(host))
    scored = all(built.score for built in result.built)
    scores = [built.score for built in result.built if built.score]
    reference = scores[0].reference if scored else None
    allowed = about.max_drop
    limit = None if reference is None or allowed is None else reference - allowed
    return pareto_svg(
        [_point(built, scored=scored, best=built is best) for built in result.built],
        title=f"{about.name} {about.version}".strip() or "edgepack build",
        quality=scores[0].name if scored else "lowest cosine to the source",
        reference=reference,
        limit=limit,
        note="; ".join(filter(None, (_resolution(result), f"measured on {_host(host)}"))),
    )


def _point(built: Built, *, scored: bool, best: bool) -> Point:
    quality = built.score.this if scored and built.score else built.parity.cosine
    measured = built.measured
    return Point(
        str(built.variant), built.variant.target, measured.p50, quality, measured.model_bytes, best
    )


def report_markdown(
    result: BuildResult,
    *,
    host: Mapping[str, Any],
    warnings: Sequence[str] = (),
    about: About,
    picture: str = "",
) -> str:
    """Return the page about a build.

    Args:
        result: What came of every variant.
        host: Where it was measured.
        warnings: Of the build as a whole.
        about: What all variants have in common.
        picture: Name of the SVG beside the page; empty: none.
    """
    best = best_of(result, about.max_drop, _machine(host))
    lines = [
        f"# {about.name} {about.version}",
        "",
        *_summary(result, best),
        *([f"![Quality, latency and size of every variant]({picture})", ""] if picture else []),
        *_variants(result, best),
        *_failures(result),
        *_warnings(result, host, warnings),
        *_done(result, about),
        *_crossed(result),
        *_layers(result),
        *_measured(result, host),
        *_again(about),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _machine(host: Mapping[str, Any]) -> str:
    return str(host.get("machine", ""))


def _crossed(result: BuildResult) -> Iterator[str]:
    """Yield which variants decide differently from one another, at most the worst few."""
    apart = [pair for pair in result.crossed if pair.different][:LAYERS]
    if not result.crossed:
        return
    yield from ("## One against the other", "")
    if not apart:
        yield from ("On these samples all variants decide alike.", "")
        return
    yield from ("| variants | other decisions | lowest cosine |", "|---|---|---|")
    for pair in apart:
        told = f"{pair.different} of {pair.samples}"
        yield f"| {pair.one}, {pair.other} | {told} | {pair.parity.cosine:.6f} |"
    yield ""


def _summary(result: BuildResult, best: Built | None) -> Iterator[str]:
    total = len(result.built) + len(result.failed)
    yield f"{len(result.built)} of {total} variants built."
    if best:
        size = best.measured.model_bytes / best.fp32.model_bytes
        speed = best.measured.p50 / best.fp32.p50
        told = f"**{best.variant}** is the fastest that keeps the accuracy"
        yield f"{told}: {size:.2f} x the size and {speed:.2f} x the latency of its fp32."
        if best.paired:
            yield f"{paired_sentence(best.paired, str(best.variant))}."
    yield ""


def _variants(result: BuildResult, best: Built | None) -> Iterator[str]:
    if not result.built:
        return
    yield from ("## Variants", "")
    metric = next((b.score.name for b in result.built if b.score), "metric")
    head = ("variant", "model", "of fp32", metric, "drop", "lost / gained", "cosine",
            "p50", "p95", "of fp32", "memory", "bundle")  # fmt: skip
    yield from _table(head, [_row(built, best=built is best) for built in result.built])
    yield "Size, latency and memory are of the model in the device's own runtime, in a fresh"
    yield "process, one sample at a time; the cosine is the lowest of any sample to the source."
    yield ""


def _row(built: Built, *, best: bool) -> tuple[str, ...]:
    this, fp32, score, pair = built.measured, built.fp32, built.score, built.paired
    name = _cell(str(built.variant))
    return (
        f"**{name}** (best)" if best else name,
        _bytes(this.model_bytes),
        _ratio(this.model_bytes / fp32.model_bytes),
        f"{score.this:.4f}" if score else "not measured",
        f"{score.drop:+.4f}" if score else "-",
        f"{pair.lost} / {pair.gained}" if pair else "-",
        f"{built.parity.cosine:.6f}",
        f"{this.p50:.4g} ms",
        f"{this.p95:.4g} ms",
        _ratio(this.p50 / fp32.p50),
        f"{this.peak_rss_mb:.0f} MB",
        f"`{built.path.rpartition('/')[2]}`",
    )


def _ratio(value: float) -> str:
    told = f"{value:.2f} x"
    return f"**{told} (worse)**" if value > SLOWER else told


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def _failures(result: BuildResult) -> Iterator[str]:
    if not result.failed:
        return
    yield from ("## Not built", "")
    rows = [
        (str(one.variant), str(one.error.exit_code), one.error.what, one.error.why, one.error.fix)
        for one in result.failed
    ]
    yield from _table(("variant", "exit code", "what", "why", "what to do"), rows)


def _warnings(
    result: BuildResult, host: Mapping[str, Any], warnings: Sequence[str]
) -> Iterator[str]:
    told = list(warnings)
    machine = _machine(host)
    for built in result.built:
        elsewhere = measured_elsewhere(built, machine)
        notes = [*built.warnings, *([elsewhere] if elsewhere else [])]
        told += [f"**{built.variant}**: {note}" for note in notes]
    if told:
        yield from ("## Warnings", "", *(f"- {_cell(note)}" for note in told), "")


def _done(result: BuildResult, about: About) -> Iterator[str]:
    yield from ("## What was done", "")
    if about.source:
        source = about.source
        yield f"- Source: `{source.name}` ({source.format}), sha256 `{source.sha256}`"
    if about.calibration:
        yield f"- Calibration: {about.calibration} samples"
    for step in about.compression:
        facts = {key: value for key, value in step.items() if key != "kind"}
        yield f"- Compressed: {step.get('kind', 'step')}: {_facts(facts)}"
    for built in result.built:
        told = _facts(_unusual(built.settings)) if built.settings else "as converted"
        found = {key: value for key, value in built.applied.items() if value}
        yield f"- {built.variant}: {told}. Found in the file: {_facts(found)}."
        yield f"  Runs as {_facts(built.effective)}."
    yield ""


def _unusual(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return of SETTINGS, the fields of a quantisation, what is not as it would be anyway."""
    usual = asdict(Quantization(precision=settings.get("precision", "int8")))
    # A tuple that came out of a document is a list.
    usual = {key: list(v) if isinstance(v, tuple) else v for key, v in usual.items()}
    kept = {"precision"} | ({"method"} if settings.get("precision") == "int8" else set())
    told = {key: list(v) if isinstance(v, tuple) else v for key, v in settings.items()}
    return {k: v for k, v in told.items() if k in kept or k not in usual or v != usual[k]}


def _facts(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{_words(key)} {_value(value)}" for key, value in facts.items()) or "nothing"


def _words(key: str) -> str:
    return key.replace("_", " ")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return f"({_facts(value)})"
    if isinstance(value, list | tuple):
        return " ".join(_value(one) for one in value) or "none"
    return _cell(str(value))


def _layers(result: BuildResult) -> Iterator[str]:
    for built in result.built:
        if built.layers:
            yield from (f"## Where {built.variant} loses most", "")
            rows = [(f"`{one.name}`", one.operator, f"{one.loss:.2%}") for one in built.layers]
            yield from _table(("layer", "operator", "error of its output"), rows[:LAYERS])


def _measured(result: BuildResult, host: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## How it was measured", "")
    resolution = _resolution(result)
    yield f"- Evaluation: {resolution or 'none: accuracy is not known'}"
    yield f"- Host: {_host(host)}"
    for note in budget_notes(result):
        yield f"- Budget: {_cell(note)}"
    yield ""


def _resolution(result: BuildResult) -> str:
    score = next((built.score for built in result.built if built.score), None)
    return f"{score.samples} samples, one is {1 / score.samples:.4f}" if score else ""


def _host(host: Mapping[str, Any]) -> str:
    told = [str(host.get(key) or "") for key in ("machine", "cpu", "system")]
    cpus = f"{host['cpus']} CPUs" if host.get("cpus") else ""
    return ", ".join(filter(None, (*told, cpus)))


def _again(about: About) -> Iterator[str]:
    if about.command:
        yield from ("## To repeat it", "", "```sh", shlex.join(about.command), "```", "")
        yield "The same source, data and tools give the same bytes; only what is measured differs."
        yield ""
    if about.tools:
        yield from _table(("tool", "version"), sorted(about.tools.items()))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(cell if '**' in cell else _cell(cell) for cell in row)} |"
    yield ""


def _cell(text: str) -> str:
    """Return TEXT so that it is one line of text wherever it stands, and never markup."""
    line = " ".join(text.split())
    for mark, safe in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;")):
        line = line.replace(mark, safe)
    return line

"""What can be built here, what cannot, and the one command that changes it. Pure: facts in."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edgepack_packager.core.documents import Doctor, DoctorCheck, DoctorRoute, ToolchainFacts
from edgepack_packager.core.plan import KINDS, make_plan
from edgepack_packager.core.recipe import PRECISIONS, ModelCard, Recipe, Variant
from edgepack_targets.interface import Capability
from edgepack_targets.machine import Machine

__all__ = ["Facts", "examine"]

ROOM_MB = {"tf": 2500, "torch": 3500, "onnx2tf": 3500}
"""Disk that a toolchain takes while it is installed, in 10^6 bytes."""
BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found on this machine."""

    version: str
    python: str
    machine: Machine
    capabilities: Mapping[str, Capability]
    """By target, whether its runtime is here or not."""
    runtimes: Mapping[str, str | None]
    """Version of each target's runtime; None: not installed."""
    extras: Mapping[str, str]
    """The extra that installs each target."""
    toolchains: Mapping[str, str | None]
    """Python of each toolchain; None: not installed."""
    purposes: Mapping[str, str]
    key: str | None
    """The key that bundles are signed with; None: there is none."""
    key_fix: str
    cache: str
    """Directory of toolchains and finished steps."""
    free_mb: int
    """Room there, 10^6 bytes."""


def examine(facts: Facts) -> Doctor:
    """Return what FACTS come to."""
    routes = [_route(facts, kind, target) for kind in KINDS for target in facts.capabilities]
    checks = list(_checks(facts))
    fixes = [route["fix"] for route in routes] + [c["fix"] for c in checks if not c["ok"]]
    toolchains: list[ToolchainFacts] = [
        {
            "name": name,
            "python": python,
            "installed": python is not None,
            "purpose": facts.purposes.get(name, ""),
        }
        for name, python in facts.toolchains.items()
    ]
    return {
        "schema": "edgepack.doctor/v1",
        "ok": all(c["ok"] for c in checks) and all(r["state"] in {"works", "none"} for r in routes),
        "version": facts.version,
        "python": facts.python,
        "host": facts.machine,
        "runtimes": dict(facts.runtimes),
        "toolchains": toolchains,
        "routes": routes,
        "checks": checks,
        "fixes": [fix for fix in dict.fromkeys(fixes) if fix],
    }


def _route(facts: Facts, kind: str, target: str) -> DoctorRoute:
    """Return whether a KIND of source can be built for TARGET; the planner itself is asked."""
    needed: tuple[str, ...] = ()
    precisions = []
    for precision in PRECISIONS:
        recipe = _recipe(target, precision)
        plan, refused = make_plan(kind, recipe, facts.capabilities)
        if not refused:
            precisions.append(precision)
            needed = tuple(dict.fromkeys((*needed, *plan.toolchains)))
    route: DoctorRoute = {
        "source": kind, "target": target, "state": "works", "precisions": precisions,
        "toolchains": list(needed), "fix": "",
    }  # fmt: skip
    missing = [name for name in needed if facts.toolchains.get(name) is None]
    if not precisions:
        route["state"] = "none"
    elif facts.runtimes.get(target) is None:
        route |= {"state": "missing", "fix": f'pip install "edgepack[{facts.extras[target]}]"'}
    elif missing:
        fix = f"edgepack toolchain install {' '.join(missing)}"
        route |= {"state": "installable", "fix": fix}
    return route


def _recipe(target: str, precision: str) -> Recipe:
    return Recipe(
        name="any", version="0.0.0", variants=(Variant(target, precision),), card=ModelCard(),
        shapes={}, calibrated=True,
    )  # fmt: skip


def _check(name: str, told: str, *, ok: bool = True, fix: str = "") -> DoctorCheck:
    return {"name": name, "ok": ok, "told": told, "fix": "" if ok else fix}


def _checks(facts: Facts) -> Iterator[DoctorCheck]:
    key = facts.key
    yield _check("key", key or "no publisher key to sign with", ok=bool(key), fix=facts.key_fix)
    wanted = max(
        (ROOM_MB.get(name, 0) for name, python in facts.toolchains.items() if python is None),
        default=500,
    )
    yield _check(
        "disk", f"{facts.free_mb / 1e3:.1f} GB free in {facts.cache}", ok=facts.free_mb >= wanted,
        fix="set EDGEPACK_TOOLCHAINS to the whole path of a directory with more room",
    )  # fmt: skip
    yield _check(
        "telemetry", "off: edgepack sends nothing, and switches it off in the runtimes it starts"
    )
    flags = set(facts.machine["cpu_features"])
    yield _check("int8", _has(flags & INT8, "fast int8 instructions", "int8 may not be faster"))
    yield _check("bf16", _has(flags & BF16, "bf16 instructions", "bf16 variants do not run here"))


def _has(flags: set[str], what: str, otherwise: str) -> str:
    found = ", ".join(sorted(flags))
    return f"this CPU has {what}: {found}" if flags else f"this CPU has no {what}: {otherwise}"

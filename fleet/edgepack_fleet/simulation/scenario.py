"""What is simulated: devices, their faults, how good each release is on them.

Everything random comes from the seed and the number of a device, so that a run can be repeated.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edgepack.errors import UsageError

__all__ = ["Faults", "Model", "Scenario", "load", "with_rollout"]


Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400)]


class _Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Unknown keys are refused: what is misspelt would silently not be simulated."""


class Model(_Struct, frozen=True, kw_only=True):
    """How a release behaves in the field, on the devices where it differs from a good one."""

    affected: Share = 1.0
    """Share of devices on which it is as said here; on the others it is as good as any."""
    exam: Share = 0.98
    """Score in the acceptance exam, which does not show what the field shows."""
    agreement: Share = 0.99
    """Mean agreement with the model before, on the same inputs."""
    latency: Positive = 1.0
    """Latency as a multiple of a good model's."""
    errors: Share = 0.0
    """Share of requests that fail."""
    drift: Share = 0.0
    """Share of the affected devices that report drift after a while."""
    fails: Share = 0.0
    """Share of the affected devices whose job fails on probation."""


class Faults(_Struct, frozen=True, kw_only=True):
    """What goes wrong with devices and links, whatever the model."""

    loss: Share = 0.0
    """Share of messages, of either direction, that get lost on an open connection."""
    disconnects_per_hour: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.0
    """Connections that a device loses without a goodbye."""
    reboots: Share = 0.0
    """Share of those after which the device has restarted: its numbers begin anew."""
    away_s: tuple[Seconds, Seconds] = (1.0, 10.0)
    """How long it is away then, at least and at most."""
    slow: Share = 0.0
    """Share of devices that take `slow_factor` times as long to install."""
    slow_factor: Positive = 10.0
    silent: Share = 0.0
    """Share of devices that take their job up and are never heard of again."""
    offline: Share = 0.0
    """Share of devices that never connect."""


class Scenario(_Struct, frozen=True, kw_only=True):
    """A fleet to simulate."""

    schema: Literal["edgepack.scenario/v1"] = "edgepack.scenario/v1"
    devices: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    seed: int = 1
    prefix: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?$")] = "sim"
    """Beginning of the devices' names."""
    release: str | None = None
    """`name@version` that they run at first; None: no model."""
    runtimes: dict[str, str] = msgspec.field(
        default_factory=lambda: {"onnx": "1.99", "openvino": "2099.0", "tflite": "2.99"}
    )
    """What they say they have, best first."""
    arch: str = "x86_64"
    cpu_features: tuple[str, ...] = ("avx2", "avx512_vnni", "avx_vnni")
    telemetry_s: Positive = 30.0
    """Seconds between two reports of a device."""
    resend_s: Positive = 20.0
    """Seconds after which a report without an acknowledgement is sent again, as agents do."""
    answer_s: Positive = 10.0
    """Seconds after which a request about a job is repeated, as agents do."""
    inferences_per_s: Annotated[float, msgspec.Meta(ge=0, le=1000)] = 5.0
    latency_ms: Positive = 12.0
    """Of a good model, at the median."""
    install_s: tuple[Seconds, Seconds] = (1.0, 5.0)
    """Seconds from taking a job up to the switch, without shadow and probation."""
    checks: Share = 0.0
    """Share of devices that read and check both repositories, and fetch and check the content."""
    connects_per_s: Positive = 500.0
    """How fast they come at first."""
    faults: Faults = Faults()
    models: dict[str, Model] = {}
    """By `name@version`; what is not named is good."""
    rollout: dict[str, Any] | None = None
    """What is rolled out, as the REST interface takes it, without the group."""

    def model(self, release: str | None) -> Model:
        """Return how RELEASE behaves."""
        return self.models.get(release or "", Model())


def load(path: Path | None, **flags: Any) -> Scenario:
    """Return the scenario in the YAML file PATH, with FLAGS that are not None in place of its own.

    Raises:
        UsageError: it cannot be read.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text()) if path else {}
        if not isinstance(found, dict):
            raise TypeError("it is not a mapping")
        given = {name: value for name, value in flags.items() if value is not None}
        return msgspec.convert(found | given, Scenario)
    except (OSError, yaml.YAMLError, msgspec.ValidationError, TypeError, UnicodeError) as error:
        raise UsageError(
            f"{path or 'the options'} cannot be used as a scenario",
            why=str(error).splitlines()[0],
            fix="see docs/how-to/rehearse-a-rollout.md",
            reason="bad_scenario",
        ) from error


def with_rollout(
    scenario: Scenario,
    *,
    rollout: str | None,
    waves: str | None,
    gates: Sequence[str],
    on_breach: str | None,
) -> Scenario:
    """Return SCENARIO with the rollout that the flags ask for on top of its own.

    Raises:
        UsageError: they say how, and nobody says what.
    """
    given = {"release": rollout, "waves": waves, "gates": list(gates), "on_breach": on_breach}
    wanted = (scenario.rollout or {}) | {name: value for name, value in given.items() if value}
    if wanted and not wanted.get("release"):
        raise UsageError("what is to be rolled out?", fix="give --rollout NAME@VERSION")
    return msgspec.structs.replace(scenario, rollout=wanted or None)

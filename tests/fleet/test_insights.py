"""How releases do, asked over REST and on the command line."""

import json
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from edgepack import messages
from edgepack.errors import EdgepackError
from edgepack_fleet.adapters.mqtt import Incoming
from edgepack_fleet.adapters.tables import JobRow, RolloutRow
from edgepack_fleet.cli.rollouts import releases
from edgepack_fleet.service import Service
from edgepack_fleet.web.app import main_app
from fleet_rig import enrol, latencies, publisher, serving
from rest_rig import LISTENER, Now, auth, problem

API = "/api/v1"
BINS = (1.0, 2.0, 3.0)
BASELINE = {
    "samples": 1000,
    "classes": {"a": 500, "b": 400, "c": 100},
    "confidence": {"edges": [0.5], "counts": [100, 900]},
    "inputs": {"image": {"mean": {"edges": list(BINS), "counts": [250, 250, 250, 250]}}},
}


def report(now: Now, seq: int, release: str, digest: str = "", **facts: Any) -> messages.Telemetry:
    said = {"boot": "b", "seq": seq, "start": now.value - 30, "end": now.value, "bundle": release}
    return messages.Telemetry(**(said | {"digest": digest or f"sha256:{release}"} | facts))


def tell(fleet: Service, device: str, kind: str, *rows: Any) -> None:
    payload = messages.encode_batch(list(rows))
    assert fleet.uplink.ingest([Incoming(f"ep/1/d/{device}/up/{kind}", payload)])


def latency(*counts: int) -> messages.Histogram:
    """Return a histogram with COUNTS just below 1, 2, 5, 10, 20 and 50 ms."""
    return latencies(dict(zip((0.9, 1.9, 4.9, 9.9, 19.9, 49.9), counts, strict=False)))


def get(app: httpx.Client, fleet: Service, path: str, **query: Any) -> dict[str, Any]:
    answer = app.get(f"{API}/{path}", params=query, headers=auth(fleet, "viewer"))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_health_is_the_sum_of_what_devices_say(app: httpx.Client, fleet: Service, now: Now) -> None:
    for name, group in (("one", "lab"), ("two", "lab"), ("three", "site")):
        enrol(fleet, name, group)
    release = "digits@1.0.0"
    target = publisher(fleet.settings.data).release(labels=("a", "b"))
    digest = f"sha256:{target.sha256}"
    for name in ("one", "two", "three"):
        tell(fleet, name, "tele", report(
            now, 0, release, digest, inferences=90, rss_mb=50.0,
            errors={"runtime_error": 6, "deadline": 4, "unauthorized": 30},
            latency_ms=latency(0, 0, 80, 10, 0, 0), classes={"a": 60, "b": 30}, throttled_s=3,
        ))  # fmt: skip
    now.value += 3600
    tell(fleet, "one", "tele", report(now, 1, release, inferences=10, rss_mb=70.0))
    tell(fleet, "one", "tele", report(now, 2, "digits@2.0.0", inferences=5))
    now.value += 1
    found = get(app, fleet, f"releases/{release}/health")
    assert (found["devices"], found["inferences"], found["errors"]) == (3, 280, 30)
    assert found["error_rate"] == pytest.approx(30 / 310)
    assert found["reasons"] == {"runtime_error": 18, "deadline": 12}
    assert found["others"] == {"unauthorized": 90}
    assert found["classes"] == {"a": 180, "b": 90}
    assert (found["rss_mb"], found["throttled_s"]) == (70.0, 9)
    p50, p99 = found["latency"]["p50"], found["latency"]["p99"]
    assert (p50["low"], p50["high"]) == (4.0, 5.0), "no more is known than the bin"
    assert p50["value"] == pytest.approx(4 + 135 / 240)
    assert (p99["low"], p99["high"]) == (8.0, 10.0)
    assert [p["inferences"] for p in found["points"]] == [270, 10]
    assert all(p["seconds"] == 300 for p in found["points"])
    site = get(app, fleet, f"releases/{release}/health", group="site")
    assert (site["devices"], site["inferences"]) == (1, 90)
    alone = get(app, fleet, f"releases/{release}/health", device="one", step="1d")
    assert (alone["devices"], alone["inferences"], len(alone["points"])) == (1, 100, 1)
    early = get(app, fleet, f"releases/{release}/health", until=now.value - 1800)
    assert early["inferences"] == 270


def test_health_tells_of_updates_and_of_ways_back(
    app: httpx.Client, fleet: Service, now: Now
) -> None:
    enrol(fleet, "cam")
    publisher(fleet.settings.data).release()
    finish(fleet, now, "digits@1.0.0", "SUCCEEDED", {"shadow": {"agreement": 0.9}})
    finish(fleet, now, "digits@1.0.0", "FAILED", {}, "probation_failed")
    event = messages.Event(
        boot="b", seq=0, ts=now.value, type="rolled_back", bundle="digits@0.9.0",
        reason="probation_failed", detail={"release": "digits@1.0.0"},
    )  # fmt: skip
    tell(fleet, "cam", "evt", event)
    now.value += 1
    found = get(app, fleet, "releases/digits@1.0.0/health", group="lab")
    assert found["installs"] == {"succeeded": 1, "failed": {"probation_failed": 1}}
    assert found["rollbacks"] == 1
    assert found["agreement"] == {"mean": 0.9, "worst": 0.9, "devices": 1}
    assert (found["devices"], found["error_rate"], found["latency"]["p50"]) == (0, None, None)


def finish(
    fleet: Service, now: Now, release: str, status: str, detail: Any, reason: str = "", **facts: Any
) -> None:
    number = random.Random(str((release, status, facts))).randrange(10**6)
    with fleet.database.write() as session:
        session.add(
            RolloutRow(id=f"r{number}", number=number, group_id="lab", release=release, variants=[],
                       waves="100%", policy={}, forgiven=[], state="completed", created=0.0,
                       updated=0.0)
        )  # fmt: skip
        session.flush()
        session.add(
            JobRow(**({
                "id": f"r{number}-cam", "device_id": "cam", "rollout_id": f"r{number}", "wave": 0,
                "release": release, "target": "t", "status": status, "detail": detail,
                "reason": reason, "probation_s": 5, "timeout_s": 60, "created": now.value,
                "updated": now.value} | facts))
        )  # fmt: skip


def test_what_is_not_there_is_refused(app: httpx.Client, fleet: Service, now: Now) -> None:
    headers = auth(fleet, "viewer")
    for path in ("releases/x@1.0.0/health", "releases/x@1.0.0/drift",
                 "releases/x@1.0.0/compare?other=y@1.0.0"):  # fmt: skip
        assert problem(app.get(f"{API}/{path}", headers=headers), 404)["reason"] == (
            "unknown_release"
        )
    turned = app.get(f"{API}/releases/x/health", params={"since": 2, "until": 1}, headers=headers)
    assert problem(turned, 400)["reason"] == "bad_window"
    assert problem(app.get(f"{API}/releases/x/health?grup=a", headers=headers), 400)


def test_drift_against_what_the_bundle_was_built_with(
    app: httpx.Client, fleet: Service, now: Now
) -> None:
    enrol(fleet, "cam")
    target = publisher(fleet.settings.data).release(drift=BASELINE)
    digest = f"sha256:{target.sha256}"
    usual = report(
        now, 0, "digits@1.0.0", digest, inferences=2000, classes={"a": 1000, "b": 800, "c": 200},
        confidence=messages.Histogram(edges=(0.5,), counts=(200, 1800)),
        features={"inputs.image.mean": (500, 500, 500, 500)},
    )  # fmt: skip
    tell(fleet, "cam", "tele", usual)
    now.value += 3600
    first = get(app, fleet, "releases/digits@1.0.0/drift")
    (variant,) = first["variants"]
    assert (variant["digest"], variant["against"], first["drifting"]) == (digest, "baseline", [])
    features = {f["feature"]: f for f in variant["features"]}
    assert set(features) == {"classes", "confidence", "inputs.image.mean"}
    assert features["inputs.image.mean"]["names"] == ["<1", "1", "2", "3"]
    bright = report(now, 1, "digits@1.0.0", digest, inferences=2000,
                    features={"inputs.image.mean": (0, 100, 400, 1500)})  # fmt: skip
    tell(fleet, "cam", "tele", bright)
    now.value += 1
    since = now.value - 600
    found = get(app, fleet, "releases/digits@1.0.0/drift", since=since, group="lab")
    assert found["drifting"] == ["inputs.image.mean"]
    (feature,) = found["variants"][0]["features"]
    assert (feature["before"], feature["now"]) == (1000, 2000)
    assert feature["psi"] > 0.1
    assert feature["adjusted"] < 0.001
    before = get(app, fleet, "releases/digits@1.0.0/drift", since=since, against="window",
                 before=3600, device="cam")  # fmt: skip
    assert before["variants"][0]["against"] == "window"
    assert before["drifting"] == ["inputs.image.mean"]
    few = get(app, fleet, "releases/digits@1.0.0/drift", since=since, min_count=5000)
    assert few["variants"][0]["features"][0]["verdict"] == "too_few"
    assert few["variants"][0]["features"][0]["lack"] == {
        "side": "now", "found": 2000, "needed": 5000,
    }  # fmt: skip
    assert (few["verdict"], few["judged"], few["features"]) == ("too_few", 0, 1)
    assert few["said"] == "not judged yet: 2,000 of 5,000 values"
    assert (found["verdict"], found["said"]) == ("drift", "1 of 1 feature drifting")


def test_what_has_no_baseline_is_said_to_have_none(
    app: httpx.Client, fleet: Service, now: Now
) -> None:
    enrol(fleet, "cam")
    tell(fleet, "cam", "tele", report(now, 0, "gone@1.0.0", inferences=5, classes={"a": 5}))
    now.value += 1
    found = get(app, fleet, "releases/gone@1.0.0/drift")
    assert [(v["against"], v["features"]) for v in found["variants"]] == [("", [])]


def test_two_releases_compared(app: httpx.Client, fleet: Service, now: Now) -> None:
    a, b = "digits@1.0.0", "digits@2.0.0"
    for n in range(12):
        name = enrol(fleet, f"cam-{n}").name
        tell(fleet, name, "tele",
             report(now, 0, a, inferences=1000, errors={"deadline": 10}, latency_ms=latency(
                 0, 900 - n, 90 + n, 10, 0, 0)),
             report(now, 1, b, inferences=1000, errors={"deadline": 200}, latency_ms=latency(
                 0, 0, 0, 900 + n, 90 - n, 10)))  # fmt: skip
    now.value += 1
    found = get(app, fleet, f"releases/{a}/compare", other=b)
    assert (found["devices_a"], found["devices_b"], found["devices_both"]) == (12, 12, 12)
    assert found["errors"]["low"] > 0.1
    assert found["p95_ratio"]["low"] > 2
    assert found["agreement"] is None
    assert "B has more" in found["said"][0]
    assert "B is slower by" in found["said"][2]
    same = get(app, fleet, f"releases/{a}/compare", other=a)
    assert same["said"][0].startswith("errors: no difference seen")
    assert same["said"][1].startswith("p50: no difference seen")


def test_agreement_is_of_b_with_a(app: httpx.Client, fleet: Service, now: Now) -> None:
    enrol(fleet, "cam")
    tell(fleet, "cam", "tele", report(now, 0, "m@1", inferences=5), report(now, 1, "m@2"))
    shadow = {"shadow": {"agreement": 0.97}}
    finish(fleet, now, "m@2", "SUCCEEDED", shadow, before={"release": "m@1"})
    finish(fleet, now, "m@2", "SUCCEEDED", {"shadow": {"agreement": 0.1}},
           before={"release": "m@0"}, attempt=2)  # fmt: skip
    now.value += 1
    found = get(app, fleet, "releases/m@1/compare", other="m@2")
    assert found["agreement"]["value"] == pytest.approx(0.97)
    assert found["agreement"]["low"] < 0.9, "one device says little"


def test_the_command_line_says_the_same(
    fleet: Service, now: Now, runner: Callable[..., Any]
) -> None:
    for n in range(3):
        name = enrol(fleet, f"cam-{n}").name
        tell(fleet, name, "tele",
             report(now, 0, "m@1", inferences=100, errors={"deadline": 5}, rss_mb=9.0,
                    latency_ms=latency(0, 0, 90, 10, 0, 0), classes={"a": 100}),
             report(now, 1, "m@2", inferences=100,
                    latency_ms=latency(0, 0, 90, 10, 0, 0)))  # fmt: skip
    health = runner("health", "m@1", "--last", "6h")
    assert "300" in health
    assert "counted between 4 to 5" in health
    assert "15 (4.8 %): 15 deadline" in health
    assert runner("health", "m@1", "--json")["schema"] == "edgepack.release-health/v1"
    assert "has no baseline" in runner("drift", "m@1", "--group", "lab")
    assert runner("drift", "m@1", "--json")["variants"][0]["against"] == ""
    assert "p95: no difference seen" in runner("compare", "m@1", "m@2")
    assert runner("compare", "m@1", "m@2", "--json")["devices_both"] == 3
    assert "not a time" in runner("health", "m@1", "--last", "soon")


def test_the_command_line_says_what_was_not_judged(
    fleet: Service, now: Now, runner: Callable[..., Any]
) -> None:
    enrol(fleet, "cam")
    target = publisher(fleet.settings.data).release(drift=BASELINE)
    tell(fleet, "cam", "tele", report(
        now, 0, "digits@1.0.0", f"sha256:{target.sha256}", inferences=80, classes={"a": 80},
        features={"inputs.image.mean": (0, 0, 0, 60)},
    ))  # fmt: skip
    said = runner("drift", "digits@1.0.0")
    assert "too few: 60 of 1000 values" in said
    assert "digits@1.0.0: not judged yet: 80 of 1,000 values" in said
    assert "0.000" not in said, "a number that nothing was measured for"


@pytest.fixture
def runner(fleet: Service, now: Now) -> Iterator[Callable[..., Any]]:
    """Run `edgepack fleet releases ...` against a real listener; its clock is the real one."""
    now.value = time.time()
    with serving(main_app(fleet, LISTENER)) as port:
        token = auth(fleet, "viewer")["Authorization"].removeprefix("Bearer ")
        environment = {"EDGEPACK_FLEET_URL": f"http://127.0.0.1:{port}",
                       "EDGEPACK_FLEET_TOKEN": token}  # fmt: skip

        def run(*words: str) -> Any:
            ran = CliRunner().invoke(releases, list(words), env=environment)
            if isinstance(ran.exception, EdgepackError):
                return str(ran.exception)
            assert ran.exception is None, ran.output
            return json.loads(ran.stdout) if "--json" in words else ran.output

        yield run

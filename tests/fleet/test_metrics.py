"""What Prometheus reads, and what comes with the fleet for it; judged by promtool."""

import json
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from edgepack import messages
from edgepack.counting import SCRAPED_EDGES_MS
from edgepack_fleet.adapters.mqtt import Incoming
from edgepack_fleet.adapters.rollup_tables import EVER, GroupRollup
from edgepack_fleet.core.histograms import checked
from edgepack_fleet.core.slots import Slot
from edgepack_fleet.core.sums import Sums
from edgepack_fleet.rollups import put
from edgepack_fleet.scraping import NAMES
from edgepack_fleet.service import Service
from edgepack_fleet.web.app import main_app
from fleet_rig import enrol, latencies, serving
from rest_rig import LISTENER, Now, auth

PACKAGE = files("edgepack_fleet")
RULES = Path(str(PACKAGE.joinpath("alerts/prometheus.yml")))
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")


def promtool(*words: str | Path, text: str | None = None) -> str:
    ran = subprocess.run(
        ["promtool", *words], input=text, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def busy(fleet: Service, now: Now) -> None:
    for name, group in (("one", "lab"), ("two", "site")):
        enrol(fleet, name, group)
        rows = [
            messages.Telemetry(
                boot="b", seq=n, start=now.value, end=now.value, bundle=release, inferences=90,
                errors={"deadline": 10, "camera_missing": 3}, throttled_s=4, digest="d",
                latency_ms=latencies({0.6: 40, 2.6: 40, 9.0: 10}),
            )
            for n, release in enumerate(("m@1.0.0", 'odd "\n\\ name'))
        ]  # fmt: skip
        payload = messages.encode_batch(rows)
        assert fleet.uplink.ingest([Incoming(f"ep/1/d/{name}/up/tele", payload)])
    fleet.uplink.ingest([Incoming("ep/1/d/one/up/tele", b"nonsense")])
    fleet.alerts.look()


def series(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(sample.labels[k] for k in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@needs_promtool
def test_prometheus_reads_sums_by_group_and_release(
    app: httpx.Client, fleet: Service, now: Now
) -> None:
    busy(fleet, now)
    answer = app.get("/metrics", headers=auth(fleet, "viewer"))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    promtool("check", "metrics", text=answer.text)
    found = series(answer.text)
    assert found["edgepack_fleet_inferences_total", "lab", "m@1.0.0"] == 90
    assert found["edgepack_fleet_inference_errors_total", "site", "deadline", "m@1.0.0"] == 10
    assert found["edgepack_fleet_other_errors_total", "site", "camera_missing", "m@1.0.0"] == 3
    assert found["edgepack_fleet_latency_seconds_bucket", "lab", "0.005", "m@1.0.0"] == 80
    assert found["edgepack_fleet_latency_seconds_count", "lab", "m@1.0.0"] == 90
    assert found["edgepack_fleet_devices", "lab", "offline"] == 1
    assert found["edgepack_fleet_broker_up",] == 0
    assert found["edgepack_fleet_refused_messages_total", "bad_message"] == 1
    assert not any("one" in key or "two" in key for key in found), "no series per device"
    assert {key[0] for key in found} <= set(NAMES)


def test_what_prometheus_is_told_never_falls(app: httpx.Client, fleet: Service) -> None:
    """Not even while newer agents, which count finer, take over from older ones."""
    enrol(fleet, "one", "lab")
    coarse = messages.Histogram(edges=SCRAPED_EDGES_MS, counts=(60, *[0] * len(SCRAPED_EDGES_MS)))
    about = {"group_id": "lab", "bundle": "m@1.0.0"}
    seen = 0.0
    for variant, told in (("a", coarse), *[("b", latencies({0.05: 50}))] * 3):
        sums = Sums(latency=checked(msgspec.to_builtins(told)))
        with fleet.database.write() as session:
            put(session, GroupRollup, Slot(EVER, 0), about | {"digest": variant}, sums)
        found = series(app.get("/metrics", headers=auth(fleet, "viewer")).text)
        count = found["edgepack_fleet_latency_seconds_count", "lab", "m@1.0.0"]
        assert count == seen + sum(told.counts)
        seen = count


def test_only_this_machine_reads_metrics_without_a_token(fleet: Service) -> None:
    with serving(main_app(fleet, LISTENER)) as port:
        url = f"http://127.0.0.1:{port}/metrics"
        assert httpx.get(url).status_code == 200
        proxied = httpx.get(url, headers={"X-Forwarded-For": "192.0.2.1"})
        assert proxied.status_code == 401
        wrong = httpx.get(url, headers={"Authorization": "Bearer wrong"})
        assert wrong.status_code == 401
        good = httpx.get(url, headers=auth(fleet, "viewer") | {"X-Forwarded-For": "192.0.2.1"})
        assert good.status_code == 200


def expressions(found: Any) -> list[str]:
    """Return what a dashboard or a file of rules asks Prometheus."""
    if isinstance(found, dict):
        mine = [v for k, v in found.items() if k in {"expr", "query"} and isinstance(v, str)]
        return mine + [text for value in found.values() for text in expressions(value)]
    return [text for one in found for text in expressions(one)] if isinstance(found, list) else []


def test_every_metric_that_is_asked_for_exists() -> None:
    dashboard = json.loads(PACKAGE.joinpath("grafana/edgepack.json").read_text())
    rules = yaml.safe_load(RULES.read_text())
    for document in (dashboard, rules):
        asked = {
            name for text in expressions(document) for name in re.findall(r"edgepack_\w+", text)
        }
        assert asked
        assert asked <= set(NAMES), asked - set(NAMES)
    panels = [panel["id"] for panel in dashboard["panels"]]
    assert len(panels) == len(set(panels))


@needs_promtool
def test_the_rules_fire_when_they_should(tmp_path: Path) -> None:
    promtool("check", "rules", RULES)
    by = 'group="lab",release="m@1"'
    series_of = {
        'edgepack_fleet_devices{group="lab",state="offline"}': "3+0x60",
        'edgepack_fleet_devices{group="lab",state="online"}': "7+0x60",
        f"edgepack_fleet_inferences_total{{{by}}}": "0+90x60",
        f'edgepack_fleet_inference_errors_total{{{by},reason="x"}}': "0+10x60",
        "edgepack_fleet_disk_free_bytes": "5+0x60",
        "edgepack_fleet_disk_size_bytes": "100+0x60",
        "edgepack_fleet_broker_up": "0+0x60",
        'edgepack_fleet_alerts{rule="Drift",severity="warning",state="firing"}': "1+0x60",
        **{f'edgepack_fleet_latency_seconds_bucket{{{by},le="{le}"}}': values
           for le, values in {"0.01": "0+100x40 4000+0x20", "0.1": "0+100x60",
                              "+Inf": "0+100x60"}.items()},
    }  # fmt: skip
    fires = {
        "EdgepackDevicesOffline": ({"group": "lab", "severity": "warning"}, "30% of the devices"),
        "EdgepackErrorRate": ({"group": "lab", "release": "m@1", "severity": "warning"}, "10%"),
        "EdgepackDiskFull": ({"severity": "critical"}, "5%"),
        "EdgepackBrokerDown": ({"severity": "critical"}, "no link"),
        "EdgepackAlert": ({"rule": "Drift", "severity": "warning"}, "Drift"),
    }
    said = {
        rule["alert"]: rule["annotations"]["summary"]
        for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    }
    tests = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [{
            "interval": "1m",
            "input_series": [{"series": k, "values": v} for k, v in series_of.items()],
            "alert_rule_test": [
                {"eval_time": "1m", "alertname": "EdgepackDevicesOffline", "exp_alerts": []},
                *(expected(name, labels, said[name]) for name, (labels, _) in fires.items()),
            ],
        }],
    }  # fmt: skip
    path = tmp_path / "tests.yml"
    path.write_text(yaml.safe_dump(tests))
    promtool("test", "rules", path)


def expected(name: str, labels: dict[str, str], text: str) -> dict[str, Any]:
    said = {"summary": filled(text, labels, name)}
    alerts = [{"exp_labels": labels, "exp_annotations": said}]
    return {"eval_time": "20m", "alertname": name, "exp_alerts": alerts}


def filled(text: str, labels: dict[str, str], name: str) -> str:
    values = {"EdgepackDevicesOffline": "30%", "EdgepackErrorRate": "10%", "EdgepackDiskFull": "5%",
              "EdgepackAlert": "1"}  # fmt: skip
    text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)
    return re.sub(r"\{\{ \$value[^}]*\}\}", values.get(name, ""), text)

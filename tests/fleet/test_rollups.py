"""Telemetry added up: sums are exact, each report counts once, in its own time."""

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

import bundles
from edgepack import messages
from edgepack.counting import CONFIDENCE_EDGES, LATENCY_EDGES_MS, SCRAPED_EDGES_MS
from edgepack_fleet.adapters.baselines import expected_of
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.mqtt import Incoming
from edgepack_fleet.adapters.rollup_tables import EVER, DeviceRollup, GroupRollup
from edgepack_fleet.adapters.tables import DeviceRow
from edgepack_fleet.core.histograms import checked, counted, like, merged, quantile
from edgepack_fleet.core.slots import DAY, FINE, HOUR, SPANS, Slot, coarser, slot_of
from edgepack_fleet.core.sums import MAX_NAMES, Sums, added, of_report, total
from edgepack_fleet.rollups import MAX_UNPUBLISHED, put, sums_of
from edgepack_fleet.uplink import Uplink
from edgepack_targets.pipeline.baseline import read_baseline
from fleet_rig import fleet_database, small_model

NOW = 1_790_000_000.0
EDGES = (1.0, 2.0, 5.0, 10.0)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with fleet_database(tmp_path, "cam", "other") as found:
        yield found


def histograms(edges: st.SearchStrategy[list[float]]) -> st.SearchStrategy[dict[str, Any]]:
    def filled(found: list[float]) -> st.SearchStrategy[dict[str, Any]]:
        size = len(found) + 1
        counts = st.lists(st.integers(0, 1000), min_size=size, max_size=size)
        return counts.map(lambda counts: {"edges": found, "counts": counts})

    return edges.flatmap(filled)


ANY_EDGES = st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0]), unique=True).map(sorted)
ANY = histograms(ANY_EDGES)


@given(st.lists(ANY, min_size=1, max_size=6), st.randoms())
def test_histograms_add_up_in_any_order_and_lose_no_count(
    found: list[dict[str, Any]], dice: random.Random
) -> None:
    def together(some: list[dict[str, Any]]) -> dict[str, Any] | None:
        result: dict[str, Any] | None = None
        for one in some:
            result = merged(result, one)
        return result

    mixed = dice.sample(found, len(found))
    whole = together(found)
    assert whole == together(mixed)
    assert counted(whole) == sum(counted(one) for one in found)
    assert whole is not None
    for place, edge in enumerate(whole["edges"]):
        below = sum(sum(one["counts"][: one["edges"].index(edge) + 1]) for one in found)
        assert sum(whole["counts"][: place + 1]) == below, "as many below each edge as there were"


@given(st.lists(ANY, max_size=6))
def test_what_has_other_edges_is_left_out_and_said(found: list[dict[str, Any]]) -> None:
    whole, out = like(found)
    assert counted(whole) + out == sum(counted(one) for one in found)


@given(st.lists(st.floats(0.01, 20), min_size=1, max_size=50), st.floats(0, 1))
def test_a_quantile_is_in_the_bin_that_it_names(values: list[float], share: float) -> None:
    counts = [0] * (len(EDGES) + 1)
    for value in values:
        counts[sum(edge <= value for edge in EDGES)] += 1
    found = quantile({"edges": EDGES, "counts": counts}, share)
    assert found is not None
    place = max(0, math.ceil(Fraction(share * len(values))) - 1)
    true = sorted(values)[place]
    assert found.low is None or found.low <= true
    assert found.high is None or true < found.high
    assert (found.low or 0.0) <= found.value <= (found.high or math.inf)


@pytest.mark.parametrize(
    "wrong",
    [
        {"edges": (2.0, 1.0), "counts": (1, 1, 1)},
        {"edges": (1.0,), "counts": (1,)},
        {"edges": (1.0, math.inf), "counts": (1, 1, 1)},
        {"edges": tuple(map(float, range(1001))), "counts": (0,) * 1002},
        None,
    ],
)
def test_what_is_no_histogram_is_none(wrong: dict[str, Any] | None) -> None:
    assert checked(wrong) is None


@given(
    st.floats(NOW - 400 * DAY, NOW + 10 * DAY) | st.sampled_from([0.0, math.nan, math.inf]),
    st.floats(0, 40 * DAY),
)
def test_a_slot_is_where_the_report_was(start: float, seconds: float) -> None:
    slot = slot_of(start, start + seconds, NOW, NOW - 100 * DAY)
    assert slot.span in SPANS
    assert slot.start % slot.span == 0
    told = start >= NOW - 101 * DAY and start + seconds <= NOW + 300
    middle = start + seconds / 2 if told else NOW
    assert slot.start <= middle < slot.end
    assert not told or slot.span >= min(seconds, DAY), "no finer than it is"
    longer = coarser(slot)
    assert longer is None or longer.start <= slot.start < slot.end <= longer.end


def spread(counts: Sequence[int]) -> tuple[int, ...]:
    """Return COUNTS of the lowest latencies, and none of the others."""
    return (*counts, *[0] * (len(LATENCY_EDGES_MS) + 1 - len(counts)))


NAMES = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(0, 99))
REPORTS = st.builds(
    lambda seq, start, seconds, bundle, inferences, errors, classes, counts, features: (
        messages.Telemetry(
            boot="b", seq=seq, start=start, end=start + seconds, bundle=bundle,
            digest=f"sha256:{bundle}", inferences=inferences, errors=errors, classes=classes,
            latency_ms=messages.Histogram(edges=LATENCY_EDGES_MS, counts=spread(counts)),
            features=features,
            rss_mb=float(inferences), throttled_s=inferences,
        )
    ),
    st.integers(0, 30),
    st.floats(NOW - 3 * DAY, NOW),
    st.sampled_from([1.0, 30.0, 4000.0]),
    st.sampled_from(["m@1.0.0", "m@2.0.0"]),
    st.integers(0, 99),
    NAMES,
    NAMES,
    st.lists(st.integers(0, 9), min_size=5, max_size=5),
    st.dictionaries(
        st.sampled_from(["inputs.x.mean"]), st.lists(st.integers(0, 9), max_size=4).map(tuple)
    ),
)  # fmt: skip


@given(st.lists(REPORTS, max_size=12), st.randoms())
def test_sums_do_not_depend_on_the_order(
    reports: list[messages.Telemetry], dice: random.Random
) -> None:
    sums = [of_report(report) for report in reports]
    assert total(sums) == total(dice.sample(sums, len(sums)))
    half = len(sums) // 2
    assert added(total(sums[:half]), total(sums[half:])) == total(sums)


def test_too_many_names_lose_no_count() -> None:
    rows = [Sums(reasons={f"r{place}": 1}) for place in range(MAX_NAMES + 50)]
    found = total(rows).reasons
    assert sum(found.values()) == MAX_NAMES + 50
    assert len(found) <= MAX_NAMES + 1
    assert found["other"] == 50


def tele(rows: list[messages.Telemetry], device: str = "cam") -> Incoming:
    return Incoming(f"ep/1/d/{device}/up/tele", messages.encode_batch(rows))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_what_is_in_the_database_is_the_sum_of_what_came(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Reports come in any order, some again: the reference adds each number once."""
    reports = {report.seq: report for report in data.draw(st.lists(REPORTS, max_size=20))}
    sent = [*reports.values(), *data.draw(st.lists(st.sampled_from(list(reports.values()) or [
        messages.Telemetry(boot="b", seq=0, start=NOW, end=NOW)]), max_size=5))]  # fmt: skip
    if reports:
        sent = [report for report in sent if report.seq in reports]
    sent = data.draw(st.permutations(sent))
    with fleet_database(tmp_path_factory.mktemp("db"), "cam") as database:
        uplink = Uplink(database, lambda: NOW, expected=small_model)
        while sent:
            cut = data.draw(st.integers(1, len(sent)))
            uplink.ingest([tele(sent[:cut])])
            sent = sent[cut:]
        wanted: Counter[tuple[Any, ...]] = Counter()
        for report in reports.values():
            slot = slot_of(report.start, report.end, NOW, 0.0)
            wanted[slot.span, slot.start, report.bundle] += report.inferences
        with database.read() as session:
            rows = session.scalars(select(DeviceRollup)).all()
            groups = session.scalars(select(GroupRollup)).all()
        found = {(r.span, r.start, r.bundle): r.inferences for r in rows}
        assert found == {key: wanted[key] for key in wanted} if reports else True
        for rows_of in (rows, [r for r in groups if r.span != EVER],
                        [r for r in groups if r.span == EVER]):  # fmt: skip
            if reports:
                reference = total(of_report(report) for report in reports.values())
                assert total(sums_of(row) for row in rows_of) == reference


def test_a_month_offline_lands_in_its_own_time(database: Database) -> None:
    with database.write() as session:
        session.get_one(DeviceRow, "cam").enrolled = NOW - 90 * DAY
    uplink = Uplink(database, lambda: NOW)
    start = NOW - 30 * DAY
    rows = [
        messages.Telemetry(
            boot="b", seq=n, start=start + n * DAY, end=start + n * DAY + seconds, inferences=1
        )
        for n, seconds in enumerate((30.0, 3000.0, 5 * 3600.0))
    ]
    wrong = messages.Telemetry(boot="b", seq=3, start=5.0, end=35.0, inferences=1)
    uplink.ingest([tele([*rows, wrong])])
    with database.read() as session:
        device = select(DeviceRollup).order_by(DeviceRollup.start)
        found = [(r.span, r.start) for r in session.scalars(device)]
    day = int(start // DAY) * DAY
    assert [span for span, _ in found] == [FINE, HOUR, DAY, FINE]
    assert found[0][1] == int(start // FINE) * FINE
    assert found[2][1] - day in {2 * DAY, 3 * DAY}
    assert found[3][1] == int(NOW // FINE) * FINE, "a clock that is off says nothing"


def test_a_row_the_database_refuses_leaves_the_others_exact(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE INSERT ON group_rollups WHEN NEW.bundle = 'bad' "
            "BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    uplink = Uplink(database, lambda: NOW)
    rows = [
        messages.Telemetry(boot="b", seq=n, start=NOW, end=NOW, inferences=n, bundle=bundle)
        for n, bundle in enumerate(("m@1", "bad", "m@1", "bad", "m@2"), 1)
    ]
    assert uplink.ingest([tele(rows)])
    assert uplink.refused == {"not_saved": 2}
    with database.read() as session:
        for kind in (DeviceRollup, GroupRollup):
            found = {r.bundle: r.inferences for r in session.scalars(select(kind))}
            assert found == {"m@1": 4, "m@2": 5}


def told(seq: int, **facts: Any) -> messages.Telemetry:
    said = {"start": NOW - 30, "end": NOW, "bundle": "m@1.0.0", "digest": "sha256:m"}
    return messages.Telemetry(boot="b", seq=seq, **(said | facts))


def usual(seq: int) -> messages.Telemetry:
    return told(
        seq, inferences=9, classes={"a": 5, "b": 4}, errors={"deadline": 1},
        latency_ms=messages.Histogram(edges=LATENCY_EDGES_MS, counts=spread((9,))),
        confidence=messages.Histogram(edges=CONFIDENCE_EDGES, counts=(9, *[0] * 19)),
        features={"inputs.x.mean": (4, 5)},
    )  # fmt: skip


def of_group(database: Database) -> list[tuple[GroupRollup, Sums]]:
    with database.read() as session:
        rows = session.scalars(select(GroupRollup).where(GroupRollup.span == EVER)).all()
        return [(row, sums_of(row)) for row in rows]


@pytest.mark.parametrize(
    ("reason", "odd"),
    [
        ("other_edges", {"latency_ms": messages.Histogram(edges=(3.3,), counts=(2**40, 2**40))}),
        ("other_edges", {"latency_ms": messages.Histogram(edges=(), counts=(2**40,))}),
        ("other_edges", {"confidence": messages.Histogram(edges=(0.33,), counts=(2**40, 2))}),
        ("unknown_class", {"classes": {f"made-up-{n}": 1 for n in range(2 * MAX_NAMES)}}),
        ("unknown_feature", {"features": {"inputs.x.made_up": (1, 2)}}),
        ("unknown_feature", {"features": {"inputs.x.mean": (1,) * 5}}),
        ("unknown_error", {"errors": {f"Made up {n}": 1 for n in range(2 * MAX_NAMES)}}),
        ("unknown_error", {"errors": {f"made_up_{n}": 1 for n in range(2 * MAX_NAMES)}}),
    ],
)
def test_one_odd_device_does_not_change_what_the_others_say(
    database: Database, reason: str, odd: dict[str, Any]
) -> None:
    uplink = Uplink(database, lambda: NOW, expected=small_model)
    uplink.ingest([tele([told(0, inferences=7, **odd)], "other")])
    uplink.ingest([tele([usual(0)])])
    uplink.ingest([tele([told(1, inferences=7, **odd)], "other")])
    ((_, found),) = of_group(database)
    alone = of_report(usual(0))
    assert found.latency == checked(alone.latency)
    assert found.confidence == checked(alone.confidence)
    assert found.features == alone.features
    assert {name: found.classes[name] for name in "ab"} == alone.classes
    assert found.reasons["deadline"] == 1
    assert found.inferences == 9 + 2 * 7, "totals are exact"
    assert found.errors == 1, "no name that a device makes up is held against the release"
    assert sum(found.reasons.values()) == 1 + 2 * sum(odd.get("errors", {}).values())
    assert sum(found.classes.values()) == 9 + 2 * sum(odd.get("classes", {}).values())
    assert max(len(found.classes), len(found.reasons)) < 40
    assert uplink.left_out == {reason: 2}
    assert uplink.refused == {}


def test_an_older_agent_is_told_between_the_edges_it_has(database: Database) -> None:
    uplink = Uplink(database, lambda: NOW, expected=small_model)
    old = messages.Histogram(
        edges=SCRAPED_EDGES_MS, counts=(3, *[0] * (len(SCRAPED_EDGES_MS) - 1), 1)
    )
    uplink.ingest([tele([usual(0), told(1, latency_ms=old)])])
    ((_, found),) = of_group(database)
    assert found.latency == {
        "edges": list(SCRAPED_EDGES_MS),
        "counts": [12, *[0] * (len(SCRAPED_EDGES_MS) - 1), 1],
    }
    assert uplink.left_out == {}


@given(st.lists(st.sampled_from([EDGES, EDGES[1:3], (3.0, 4.0), (1.0,)]), min_size=1, max_size=6),
       st.randoms(use_true_random=False))  # fmt: skip
def test_edges_that_are_somewhat_coarser_lose_nobody(
    found: list[tuple[float, ...]], dice: random.Random
) -> None:
    told = [
        {"edges": list(edges), "counts": [dice.randrange(1, 9) for _ in range(len(edges) + 1)]}
        for edges in found
    ]
    total, out = like(told)
    assert counted(total) + out == sum(counted(one) for one in told)
    if set(found) <= {EDGES, EDGES[1:3]} or set(found) <= {EDGES, (1.0,)}:
        assert out == 0, "a quarter of the edges is enough"
    if (3.0, 4.0) in found and len(set(found)) > 1:
        assert out > 0, "what has no edge in common is left out"


def test_finer_edges_are_as_good(database: Database) -> None:
    uplink = Uplink(database, lambda: NOW, expected=small_model)
    finer = messages.Histogram(edges=(0.05, *LATENCY_EDGES_MS), counts=(3, *spread((4,))))
    uplink.ingest([tele([usual(0), told(1, latency_ms=finer)])])
    ((_, found),) = of_group(database)
    assert found.latency == {"edges": list(LATENCY_EDGES_MS), "counts": list(spread((16,)))}
    assert uplink.left_out == {}


def test_models_that_nobody_published_are_bounded_and_say_no_names(database: Database) -> None:
    uplink = Uplink(database, lambda: NOW)
    for begin in range(0, 400, 100):
        uplink.ingest([tele([
            told(seq, inferences=1, bundle=f"made-up@{seq}", digest=f"sha256:{seq}",
                 classes={f"c{seq}": 1})
            for seq in range(begin, begin + 100)
        ])])  # fmt: skip
    found = of_group(database)
    assert len(found) == MAX_UNPUBLISHED + 1
    assert sum(sums.inferences for _, sums in found) == 400
    assert {name for _, sums in found for name in sums.classes} == {"other"}
    assert {row.digest for row, _ in found} == {""}
    assert uplink.left_out == {"unknown_class": 400, "too_many_models": 400 - MAX_UNPUBLISHED}
    with database.read() as session:
        slots = session.scalars(select(DeviceRollup.bundle)).all()
    assert len(slots) == MAX_UNPUBLISHED + 1, "nor are a device's own sums without end"


def test_what_is_expected_is_what_the_manifest_says() -> None:
    drift = {
        "classes": {"z": 1},
        "confidence": {"edges": [0.5], "counts": [1, 1]},
        "inputs": {"image": {"mean": {"edges": [1.0], "counts": [1, 1]}}},
    }
    made = bundles.manifest(labels=("cat", "dog"), drift=drift)
    found = expected_of(made, read_baseline(drift))
    assert found.release == "digits@1.0.0"
    assert (found.features, found.confidence) == ({"inputs.image.mean": 2}, (0.5,))
    names = ["cat", "z", "9", "other", "10", "09", "x"]
    assert [n for n in names if found.has_class(n)] == ["cat", "z", "9", "other"]


def test_counters_stop_before_the_database_does(database: Database) -> None:
    for _ in range(3):
        with database.write() as session:
            about = {"bundle": "m@1", "digest": "d", "device_id": "cam"}
            put(session, DeviceRollup, Slot(FINE, 0), about, Sums(inferences=2**53))
    with database.read() as session:
        assert session.scalars(select(DeviceRollup.inferences)).one() == 2**53


def test_more_features_than_there_can_be_are_refused_as_a_message() -> None:
    row = messages.Telemetry(boot="b", seq=0, start=0.0, end=0.0, features={"f": (1,) * 65})
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(msgspec.to_builtins(row), messages.Telemetry)

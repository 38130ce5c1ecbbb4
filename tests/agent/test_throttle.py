"""Whether the processor was slowed, from trees as three kinds of machines have them in /sys."""

from pathlib import Path

import pytest

from edgepack_agent.core.telemetry import Tally, add_rows
from edgepack_agent.runner.throttle import Throttle

COUNT = "devices/system/cpu/cpu1/thermal_throttle/core_throttle_count"
PI = "devices/platform/soc/soc:firmware/get_throttled"
COOLER = "class/thermal/cooling_device0"
ALARM = "class/hwmon/hwmon2"


def tree(root: Path, **files: str) -> Throttle:
    for name, content in files.items():
        write(root, name, content)
    return Throttle(root)


def write(root: Path, name: str, content: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{content}\n")


def test_a_machine_that_does_not_say_is_not_called_cool(tmp_path: Path) -> None:
    assert Throttle(tmp_path).seen() is None


def test_a_counter_tells_what_was_since_the_last_look(tmp_path: Path) -> None:
    package = COUNT.replace("core_", "package_")
    throttle = tree(tmp_path, **{COUNT: "7", package: "3"})
    assert throttle.seen() is False, "what was before the start is old news"
    write(tmp_path, package, "5")
    assert throttle.seen() is True
    assert throttle.seen() is False
    write(tmp_path, COUNT, "0")  # the core was switched off and on
    assert throttle.seen() is False
    write(tmp_path, COUNT, "1")
    assert throttle.seen() is True
    (tmp_path / COUNT).unlink()
    (tmp_path / package).unlink()
    assert throttle.seen() is None


@pytest.mark.parametrize(
    ("word", "slowed"),
    [
        ("0", False),
        ("50000", False),
        ("0x50000", False),
        ("50005", True),
        ("0x2", True),
        ("8", True),
    ],
)
def test_a_raspberry_pi_tells_what_is_now_in_the_low_bits(
    tmp_path: Path, word: str, slowed: bool
) -> None:
    assert tree(tmp_path, **{PI: word}).seen() is slowed


@pytest.mark.parametrize("kind", ["thermal-cpufreq-0", "cpufreq-cpu0", "Processor"])
def test_a_cooling_device_that_slows_the_processor_counts(tmp_path: Path, kind: str) -> None:
    throttle = tree(tmp_path, **{f"{COOLER}/type": kind, f"{COOLER}/cur_state": "0"})
    assert throttle.seen() is False
    write(tmp_path, f"{COOLER}/cur_state", "2")
    assert throttle.seen() is True
    write(tmp_path, f"{COOLER}/cur_state", "-1")
    assert throttle.seen() is False


@pytest.mark.parametrize("kind", ["pwm-fan", "Fan", "TCC Offset", "iwlwifi_1"])
def test_a_fan_that_turns_slows_nothing(tmp_path: Path, kind: str) -> None:
    assert tree(tmp_path, **{f"{COOLER}/type": kind, f"{COOLER}/cur_state": "3"}).seen() is None


@pytest.mark.parametrize(("name", "slowed"), [("rpi_volt", True), ("nct6775", None)])
def test_too_little_voltage_is_told_by_the_driver_of_the_pi_alone(
    tmp_path: Path, name: str, slowed: bool | None
) -> None:
    files = {f"{ALARM}/name": name, f"{ALARM}/in0_lcrit_alarm": "1"}
    assert tree(tmp_path, **files).seen() is slowed


@pytest.mark.parametrize("told", ["", "no number", "\x00"])
def test_what_cannot_be_read_says_nothing(tmp_path: Path, told: str) -> None:
    files = {PI: told, COUNT: told, f"{COOLER}/type": "Processor", f"{COOLER}/cur_state": told}
    assert tree(tmp_path, **files).seen() is None


def test_seconds_add_up_and_what_is_not_known_stays_unknown() -> None:
    def row(seq: int, *beats: bool | None) -> object:
        tally = Tally("m@1.0.0", "d", 0.0)
        for beat in beats:
            tally.add({"throttled": beat})
        return tally.row("b", seq, 0, end=1.0, level="health")

    rows = [row(0, True, False, True), row(1, None, None), row(2, True), row(3, None)]
    assert [one.throttled_s for one in rows] == [2, None, 1, None]  # type: ignore[attr-defined]

    def both(a: int, b: int) -> int | None:
        found = add_rows(rows[a], rows[b])  # type: ignore[arg-type]
        assert found is not None
        return found.throttled_s

    assert (both(0, 1), both(0, 2), both(1, 3)) == (2, 3, None)

"""Two runners on the same listening sockets: requests pass from one to the other, none is lost."""

import threading
from pathlib import Path

from digits import digits_data
from hammer import Hammer
from slots import Client, Heard, digits_slot, listen

TEST = digits_data()[1].head(8)


def hand_over(old: Heard, new: Heard) -> None:
    new.tell("accept")
    new.wait("accepting")
    old.tell("drain")
    old.wait("drained")


def test_there_and_back_under_load_loses_nothing(tmp_path: Path) -> None:
    first, second = digits_slot(tmp_path / "a"), digits_slot(tmp_path / "b", "1.0.1")
    with (
        listen() as tcp,
        listen(tmp_path / "api.sock") as unix,
        Heard(first, [tcp, unix]) as old,
        Heard(second, [tcp, unix]) as new,
    ):
        digest = {old: old.wait("loaded")["digest"], new: new.wait("loaded")["digest"]}
        old.tell("accept")
        old.wait("accepting")
        with Hammer([tcp.getsockname(), unix.getsockname()]) as hammer:
            for here, there in ((old, new), (new, old), (old, new)):
                hand_over(here, there)
                # An answer of the other one may have come before and be counted after.
                hammer.all_by(digest[there], 50)
            old.runner.stop(5)
        assert hammer.failures == []


def test_a_way_back_cuts_the_draining_short(tmp_path: Path) -> None:
    with listen() as tcp, Heard(digits_slot(tmp_path / "a"), [tcp]) as heard:
        heard.accepting()
        with Client(tcp.getsockname()) as idle:
            idle.infer(TEST.inputs[0])
            heard.tell("drain")
            heard.tell("accept")
            heard.wait("accepting")
            heard.wait("beat")
            heard.wait("beat")
            idle.infer(TEST.inputs[0])
        assert all(event["evt"] != "drained" for event in heard.past)


def test_what_nobody_took_waits_for_the_next_runner(tmp_path: Path) -> None:
    with listen() as tcp, Heard(digits_slot(tmp_path / "a"), [tcp]) as heard:
        heard.wait("loaded")
        with Client(tcp.getsockname()) as early:
            asked = threading.Thread(target=early.infer, args=(TEST.inputs[0],))
            asked.start()
            heard.wait("beat")
            assert asked.is_alive()
            heard.tell("accept")
            heard.wait("accepting")
            asked.join(10)
            assert not asked.is_alive()

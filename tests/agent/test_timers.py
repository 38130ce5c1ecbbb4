"""What is to be done later is done once, in order, and forgotten with the place it was for."""

from edgepack_agent.timers import Timers


def test_what_was_for_here_is_forgotten_when_it_is_left() -> None:
    now, done = 0.0, list[str]()
    timers = Timers(lambda: now)
    timers.later(5, lambda: done.append("always"))
    for _ in range(1000):
        timers.later(86400, lambda: done.append("here"), here=True)
        timers.leave()
    timers.later(1, lambda: done.append("new"), here=True)
    assert len(timers) == 2, "deadlines of days do not pile up"
    assert timers.next_in() == 1
    now = 1e6
    for action in timers.due():
        action()
    assert done == ["new", "always"]
    assert timers.next_in() is None

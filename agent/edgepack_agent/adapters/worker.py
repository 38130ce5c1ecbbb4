"""One thread for what takes long, one thing at a time, with a flag to stop it. Knows no task.

The result of a task that was cancelled is dropped, so what arrives belongs to what is under way.
An error that nobody foresaw still gives a result: an update engine that waits for ever for a
thread that died is the classic way to lose a device.
"""

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["Done", "Task", "Worker"]

log = logging.getLogger(__name__)
T = TypeVar("T")
Cancelled = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Task(Generic[T]):
    """Something to do: gets a function that says whether it is to stop, gives a result."""

    run: Callable[[Cancelled], T]
    on_error: Callable[[Exception], T]
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """A task has ended with a result."""

    task: Task[T]
    result: T


class Worker(Generic[T]):
    """Runs tasks in the order they come; POST is called from its thread with each `Done`."""

    def __init__(self, post: Callable[[Done[T]], None]) -> None:
        self._post = post
        self._queue: queue.SimpleQueue[Task[T] | None] = queue.SimpleQueue()
        self._current: Task[T] | None = None
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a task that was not cancelled is to give its result yet."""
        return self._current is not None

    def begin(self, run: Callable[[Cancelled], T], on_error: Callable[[Exception], T]) -> None:
        """Run RUN next; what was under way is cancelled. ON_ERROR makes a result of an error."""
        self.cancel()
        self._current = Task(run, on_error)
        self._queue.put(self._current)

    def cancel(self) -> None:
        """Stop what is under way and drop its result."""
        if self._current is not None:
            self._current.stop.set()
            self._current = None

    def accept(self, done: Done[T]) -> bool:
        """Say whether DONE is of the task under way, which then is no longer so."""
        if done.task is not self._current:
            return False
        self._current = None
        return True

    def stop(self, grace_s: float) -> None:
        """End the thread."""
        self.cancel()
        self._queue.put(None)
        self._thread.join(grace_s)

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            if task.stop.is_set():
                continue
            try:
                result = task.run(task.stop.is_set)
            except Exception as error:  # noqa: BLE001 - on_error judges every error
                result = task.on_error(error)
            self._post(Done(task, result))

"""One piece of work at a time in a thread beside the loop, such as writing a checkpoint."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any


class Background:
    """A thread that does what it is given; what goes wrong in it is raised where its owner next asks."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="background")
        self._work: Future[Any] | None = None

    def __enter__(self) -> "Background":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()  # which waits for the end of the work

    def begin(self, work: Callable[[], Any]) -> None:
        """Start a piece of work, after the end of the one before. Raises what that one raised."""
        self.wait()
        self._work = self._thread.submit(work)

    def check(self) -> None:
        """Raise what the work raised, if it has ended; never waits."""
        if self._work is not None and self._work.done():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is left to do. Raises what the work raised, once."""
        work, self._work = self._work, None
        if work is not None:
            work.result()

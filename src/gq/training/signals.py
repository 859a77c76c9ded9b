"""Stopping by signal: the first SIGINT or SIGTERM asks the loop to save and end, a second one ends at once."""

import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType


class StopRequest:
    """A context in which SIGINT and SIGTERM set `requested` instead of interrupting.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self, note: Callable[[str], None] = lambda text: None) -> None:
        """Tell `note` that a request came: what the loop is doing may still take a while."""
        self.requested = ""
        self._note = note
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
        # RuntimeError: it came in the middle of other output, which cannot be entered twice; else: nobody listens.
        with suppress(RuntimeError, OSError, ValueError):
            self._note(f"{self.requested}: saving at the end of this step; once more ends at once")

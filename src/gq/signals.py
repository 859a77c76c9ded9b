"""Signals that stop a process once it has saved."""

import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType

SAVING = "{}: saving at the end of this step; once more ends at once"


class StopRequest:
    """A context in which a signal sets `requested` and ends nothing; a second Ctrl-C raises KeyboardInterrupt.

    These are SIGINT and SIGTERM; SIGUSR1 and SIGUSR2, which clusters send before a time limit; SIGHUP, of a terminal
    that is closed, unless it is ignored as under nohup. A cluster may send several: of others than Ctrl-C only a second
    SIGTERM after a first one does so too.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self, note: Callable[[str], None] = lambda text: None, text: str = SAVING) -> None:
        """Tell `note` that a request came: what the loop is doing may still take a while."""
        self.requested = ""  # the name of the signal
        self._note, self._text = note, text
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
        numbers = [number for name in names if (number := getattr(signal, name, None)) is not None]
        for number in numbers:
            if signal.getsignal(number) is signal.SIG_IGN and number != signal.SIGINT:
                continue
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
        name = signal.Signals(number).name
        if self.requested:
            if name == "SIGINT" or name == self.requested == "SIGTERM":
                raise KeyboardInterrupt
            return
        self.requested = name
        # RuntimeError: it came in the middle of other output, which cannot be entered twice; else: nobody listens.
        with suppress(RuntimeError, OSError, ValueError):
            self._note(self._text.format(name))

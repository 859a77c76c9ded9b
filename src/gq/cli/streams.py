"""Standard streams that end no command: what is said on stderr is lost where nobody listens any more."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


class ForgivingStream:
    """A text stream that drops what cannot be written: its reader went away, it is closed, its disk is full."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what can be written."""
        with suppress(OSError, ValueError):  # ValueError: it was closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Pass on what is pending."""
        with suppress(OSError, ValueError):
            self._stream.flush()


def prepare() -> None:
    """Let no command fail at saying something: progress on a broken stderr must not cost a training its last steps."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their descriptors
        if getattr(sys, name) is None:  # closed by the caller, whose descriptor the next file would get
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    sys.stderr = ForgivingStream(sys.stderr)

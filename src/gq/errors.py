"""What goes wrong for a user, with the next step. Engine code raises these; only the command line prints them."""

import difflib
from collections.abc import Iterable


class GqError(Exception):
    """A problem that the user can solve.

    Args:
        hint: the next step, a command where there is one.
        exit_code: 1 when the task failed, 2 when the request or the configuration was wrong.
    """

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code


class UsageError(GqError):
    """A wrong name, option or value: exit code 2."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint, exit_code=2)


class DataError(GqError):
    """A dataset file that must not be trained on: exit code 1."""


class Interrupted(GqError):
    """Stopped by a signal with everything saved: exit code 130."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint, exit_code=130)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the host ran out of memory, without importing torch for its exception types."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"} or "DefaultCPUAllocator" in str(error):
        return True
    # Where memory ran out while a CUDA graph was captured, the end of the capture fails too, and is what is raised.
    return isinstance(error.__context__, Exception) and is_out_of_memory(error.__context__)


def suggest(name: str, candidates: Iterable[str], *, otherwise: str = "") -> str:
    """Return a hint that names the closest candidates, or `otherwise`."""
    known = list(candidates)
    lowered = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), list(lowered), n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(lowered[match] for match in close) + "?"
    return otherwise

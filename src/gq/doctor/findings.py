"""What an examination finds."""

from dataclasses import dataclass
from typing import Literal

# A problem keeps gq, or something that was made with it, from working; a warning is worth a look; a note is no fault.
Status = Literal["ok", "note", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was examined."""

    subject: str
    status: Status
    text: str
    mend: str = ""  # the command that mends it; every problem has one

    def __post_init__(self) -> None:
        assert self.mend or self.status != "problem", f"{self.subject}: a problem without a command that mends it"

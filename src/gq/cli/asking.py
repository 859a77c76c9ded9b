"""Asking before something is lost."""

import sys

from gq.errors import UsageError


def is_terminal() -> bool:
    """Tell whether there is somebody to ask."""
    return sys.stdin.isatty()


def ask(question: str, *, refusal: str, yes: bool) -> None:
    """Return if the answer is yes, given beforehand or now; end the command if it is no.

    Raises:
        UsageError: there is nobody to ask; the message is `refusal`.
    """
    if yes:
        return
    if not is_terminal():
        raise UsageError(refusal, hint="add --yes")
    import typer

    typer.confirm(question, abort=True, err=True)

"""How commands fail: at most four lines on stderr and an exit code; a traceback only when asked for."""

import os
import sys
from typing import Any

import typer
import typer.core

from gq.errors import GqError

EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted (with everything saved)."


class Group(typer.core.TyperGroup):
    """The root command; turns what goes wrong for users into messages."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except GqError as error:
            if os.environ.get("GQ_DEBUG"):
                raise
            fail(str(error), error.hint, error.exit_code)
        except KeyboardInterrupt:
            fail("interrupted", "", 130)
        except BrokenPipeError:
            # The reader went away (`| head`); point stdout elsewhere so that closing it does not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except OSError as error:
            if os.environ.get("GQ_DEBUG"):
                raise
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror or error}", "the traceback: GQ_DEBUG=1", 1)


def fail(message: str, hint: str, exit_code: int) -> None:
    """Print an error and end the process."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    if hint:
        typer.echo(f"hint: {' '.join(hint.split())}", err=True)
    raise typer.Exit(exit_code)

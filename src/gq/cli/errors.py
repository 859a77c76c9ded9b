"""How commands fail: at most four lines on stderr and an exit code; a traceback only when asked for."""

import os
import sys
from typing import Any

import typer
import typer.core

from gq.cli.output import visible
from gq.errors import DataError, GqError, is_out_of_memory

EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted (with everything saved)."

DEFAULT_HINTS: dict[type[GqError], str] = {DataError: "correct the file, or train on another: gq download --list"}
MAX_LETTERS = 1_000  # of a message; what is longer quotes a file
OUT_OF_MEMORY_HINT = "gq params says what a model needs; a smaller --size or fewer at a time needs less"


class Group(typer.core.TyperGroup):
    """The root command; turns what goes wrong for users into messages."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands in the order of use; Typer would put the one with subcommands last."""
        first = ["download", "repair", "train", "finetune"]
        return first + [name for name in super().list_commands(ctx) if name not in first]

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except GqError as error:
            if os.environ.get("GQ_DEBUG"):
                raise
            fail(str(error), hint_of(error), error.exit_code)
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
            fail(f"{where}{error.strerror or error}", "GQ_DEBUG=1 shows where in gq it happened", 1)
        except Exception as error:
            if os.environ.get("GQ_DEBUG") or not is_out_of_memory(error):
                raise
            fail("the model and its batch do not fit in memory", OUT_OF_MEMORY_HINT, 1)


def hint_of(error: GqError) -> str:
    """Return the next step after an error, which some do not name themselves."""
    return error.hint or DEFAULT_HINTS.get(type(error), "")


def tidy(text: str) -> str:
    """Return a text from wherever as a line for a terminal: without control characters, and not longer than a page."""
    line = visible(" ".join(text.split()), kept="")
    return line if len(line) <= MAX_LETTERS else f"{line[: MAX_LETTERS - 4]} ..."


def fail(message: str, hint: str, exit_code: int) -> None:
    """Print an error, of several processes with the number of this one, and end the process."""
    from gq.training.processes import rank

    which = f"process {rank()}: " if rank() else ""
    typer.echo(f"error: {which}{tidy(message)}", err=True)
    if hint:
        typer.echo(f"hint: {tidy(hint)}", err=True)
    raise typer.Exit(exit_code)

"""Write docs/commands.md, the help of every command; a test compares it with what this writes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from typer.testing import CliRunner

from gq.cli import app

FILE = Path(__file__).parents[1] / "docs" / "commands.md"
HEAD = """\
# Commands

Every command's help, as `gq COMMAND --help` prints it; `make commands` writes this page. What the commands are good for
is in the [README](../README.md), how they go together in the [tutorial](tutorial.md).

What all of them share: results go to stdout, everything else to stderr; `--json` makes stdout one JSON document, `-q`
a path, an id or a number. Exit codes are 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted with
everything saved.
"""


def commands(command: Any, words: tuple[str, ...] = ("gq",)) -> Iterator[tuple[str, ...]]:
    """Yield the words of a command and of all below it, in the order of its help."""
    yield words
    names = command.list_commands(None) if hasattr(command, "commands") else []
    for name in names:
        yield from commands(command.commands[name], (*words, name))


def help_of(words: tuple[str, ...]) -> str:
    """Return what a command's --help prints in a terminal of 80 columns."""
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*words[1:], "--help"], prog_name="gq")
    assert result.exit_code == 0, result.output
    return "\n".join(line.rstrip() for line in result.stdout.strip().splitlines())


def page() -> str:
    """Return docs/commands.md."""
    all_words = list(commands(typer.main.get_command(app)))
    links = ",\n".join(f"[{' '.join(words)}](#{'-'.join(words)})" for words in all_words)
    sections = [f"## {' '.join(words)}\n\n```text\n{help_of(words)}\n```\n" for words in all_words]
    return "\n".join([HEAD, links + "\n", *sections])


def main() -> None:
    """Write the page."""
    FILE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()

"""The `gq` command: its subcommands and what all of them have in common."""

from typing import Annotated

import typer

from gq.cli.download import download
from gq.cli.errors import EXIT_CODES, Group
from gq.cli.evaluate import evaluate
from gq.cli.params import params
from gq.cli.render import render
from gq.cli.train import train_app

app = typer.Typer(
    name="gq",
    cls=Group,
    help="Train, evaluate and render Decision Transformers on MuJoCo.",
    epilog=(
        "The main job:  gq download builtin/hopper/medium;  gq train dt;  gq eval --latest;  gq render --latest\n\n"
        f"{EXIT_CODES}\n\n"
        "Datasets and runs live in the user's cache folder, or under GQ_HOME (GQ_DATA_DIR, GQ_RUNS_DIR for one of "
        "them). GQ_DEBUG=1 shows tracebacks."
    ),
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version; with -v, all that a bug report needs.")
    ] = False,
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, hidden=True)] = 0,
) -> None:
    """Train, evaluate and render Decision Transformers on MuJoCo."""
    if not version:
        return
    from gq.versions import report, versions

    typer.echo(report() if verbose else f"gq {versions()['gq']}")
    raise typer.Exit


app.command()(download)
app.add_typer(train_app, name="train")
app.command("eval")(evaluate)
app.command()(render)
app.command()(params)


def main() -> None:
    """Run the command line."""
    app()

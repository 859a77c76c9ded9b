"""The `gq` command: its subcommands and what all of them have in common."""

from typing import Annotated

import typer

from gq.cli import collect, distill, download, evaluate, finetune, params, plot, render, repair
from gq.cli.errors import EXIT_CODES, Group
from gq.cli.train_tdmpc2 import train_app

EPILOG = f"""\b
Examples:
  gq download builtin/hopper/medium      a dataset, simulated on the spot
  gq repair hopper.hdf5                  what is wrong with a file
  gq train dt                            a policy
  gq train tdmpc2 --task walker-walk     another, that plans
  gq finetune --latest                   a better one (after train odt)
  gq distill --latest                    a network to correct plans with
  gq plot --latest                       how it learnt
  gq eval --latest                       its returns, with intervals
  gq render --latest                     a video
  gq collect --latest -o mine.hdf5       a dataset of its episodes
  gq params                              what models cost

{EXIT_CODES}

Datasets and runs live in the user's cache folder, or under GQ_HOME (GQ_DATA_DIR and GQ_RUNS_DIR move one of them).
NO_COLOR switches colours off, GQ_DEBUG=1 shows tracebacks."""

app = typer.Typer(
    name="gq",
    cls=Group,
    help="Train, evaluate and render policies for MuJoCo: sequence models and world models.",
    epilog=EPILOG,
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
    """Train, evaluate and render policies for MuJoCo: sequence models and world models."""
    if not version:
        return
    from gq.versions import report, versions

    typer.echo(report() if verbose else f"gq {versions()['gq']}")
    raise typer.Exit


app.command(epilog=download.EXAMPLES, short_help="Get a dataset into the cache.")(download.download)
app.command(epilog=repair.EXAMPLES, short_help="Find and repair what is wrong with a dataset.")(repair.repair)
app.add_typer(train_app, name="train")
app.command(epilog=finetune.EXAMPLES, short_help="Finetune a policy on its own episodes.")(finetune.finetune)
app.command(epilog=distill.EXAMPLES, short_help="Teach a network to correct plans.")(distill.distill)
app.command(epilog=plot.EXAMPLES, short_help="Draw learning curves.")(plot.plot)
app.command("eval", epilog=evaluate.EXAMPLES, short_help="Measure a run.")(evaluate.evaluate)
app.command(epilog=render.EXAMPLES, short_help="Film a run.")(render.render)
app.command(epilog=collect.EXAMPLES, short_help="Roll a run into a dataset.")(collect.collect)
app.command(epilog=params.EXAMPLES, short_help="Report what models cost.")(params.params)


def main() -> None:
    """Run the command line."""
    app(prog_name="gq")  # also under `python -m gq`, so that messages name a command that works when typed

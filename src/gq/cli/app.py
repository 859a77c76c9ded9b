"""The `gq` command: its subcommands and what all of them have in common."""

from typing import Annotated

import typer

from gq.cli import (
    benchmark,
    collect,
    compare,
    distill,
    doctor,
    download,
    evaluate,
    finetune,
    params,
    plot,
    pull,
    push,
    render,
    repair,
    report,
    table,
)
from gq.cli.errors import EXIT_CODES, Group
from gq.cli.output import prepare_streams
from gq.cli.runs import runs_app
from gq.cli.sweep import sweep_app
from gq.cli.train import train_app

EPILOG = f"""\b
Examples:
  gq download builtin/hopper/medium      a dataset, simulated on the spot
  gq repair hopper.hdf5                  what is wrong with a file
  gq train dt                            a policy
  gq train tdmpc2 --task walker-walk     another, that plans
  gq sweep sizes.toml --jobs 2           many, from one file
  gq finetune --latest                   a better one (after train odt)
  gq distill --latest                    a network to correct plans with
  gq plot --latest                       how it learnt
  gq eval --latest                       its returns, with intervals
  gq report --latest                     all of it on one page
  gq table 'hopper-*'                    all seeds, datasets, methods
  gq benchmark builtin --dry-run         algorithms, data, seeds
  gq compare runs/a runs/b               which one is better, and how sure
  gq render --latest                     a video
  gq collect --latest -o mine.hdf5       a dataset of its episodes
  gq push --latest me/hopper             on the Hub, for a colleague
  gq pull me/hopper                      who gets it so
  gq params                              what models cost
  gq runs                                what was trained so far
  gq doctor                              what is wrong here, and what fixes it

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
    from gq import __version__

    if not verbose:
        typer.echo(f"gq {__version__}")
        raise typer.Exit
    from gq.doctor import bug_report

    typer.echo(bug_report())
    raise typer.Exit


app.command(epilog=download.EXAMPLES, short_help="Get a dataset into the cache.")(download.download)
app.command(epilog=repair.EXAMPLES, short_help="Find and repair what is wrong with a dataset.")(repair.repair)
app.add_typer(train_app, name="train")
app.add_typer(sweep_app, name="sweep", short_help="Run many trainings from one file.")
app.add_typer(runs_app, name="runs", short_help="List, show and remove runs.")
app.command(epilog=finetune.EXAMPLES, short_help="Finetune a policy on its own episodes.")(finetune.finetune)
app.command(epilog=distill.EXAMPLES, short_help="Teach a network to correct plans.")(distill.distill)
app.command(epilog=plot.EXAMPLES, short_help="Draw learning curves.")(plot.plot)
app.command("eval", epilog=evaluate.EXAMPLES, short_help="Measure a run.")(evaluate.evaluate)
app.command(epilog=report.EXAMPLES, short_help="Write a report card of runs.")(report.report)
app.command(epilog=table.EXAMPLES, short_help="Show results of many runs as a table.")(table.table)
app.command(epilog=benchmark.EXAMPLES, short_help="Compare algorithms on the same data and seeds.")(benchmark.benchmark)
app.command(epilog=compare.EXAMPLES, short_help="Say which of two runs is better.")(compare.compare)
app.command(epilog=render.EXAMPLES, short_help="Record a video of a run.")(render.render)
app.command(epilog=collect.EXAMPLES, short_help="Roll a run into a dataset.")(collect.collect)
app.command(epilog=push.EXAMPLES, short_help="Put a run or a dataset on the Hub.")(push.push)
app.command(epilog=pull.EXAMPLES, short_help="Get a run from the Hub.")(pull.pull)
app.command(epilog=params.EXAMPLES, short_help="Report what models cost.")(params.params)
app.command(epilog=doctor.EXAMPLES, short_help="Examine this machine, the cache and the runs.")(doctor.doctor)


def main() -> None:
    """Run the command line."""
    prepare_streams()
    app(prog_name="gq")  # also under `python -m gq`, so that messages name a command that works when typed

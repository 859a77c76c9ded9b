"""`gq train dt` and `gq train bc`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from gq.cli import options
from gq.cli.output import Output
from gq.cli.training_view import TrainingView

train_app = typer.Typer(help="Train a policy.", no_args_is_help=True, rich_markup_mode=None)

EXAMPLES = """\b
Examples:
  gq train dt                                      the dataset downloaded last, the 1m model
  gq train dt --dataset data.hdf5 --task hopper --steps 5000
  gq train dt --size 0.6b --device cuda --set train.batch_size=256
  gq train dt --set model.backbone=gpt2 --set model.num_kv_heads=4
  gq train dt --config my.toml --set data.mode=delayed --set eval.every=0
  gq train dt --out runs/a; gq train dt --out runs/a --resume"""
BC_EXAMPLES = """\b
Examples:
  gq train bc                                      the best tenth of the dataset downloaded last
  gq train bc --dataset data.hdf5 --set data.top_fraction=0.25"""

Steps = Annotated[int | None, typer.Option(help="Updates.")]
BatchSize = Annotated[int | None, typer.Option(help="Windows per update.")]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, batches and dropout.")]
Target = Annotated[str | None, typer.Option(metavar="A,B,C", help="Target returns to evaluate at.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="The run's folder; default: a new one in the cache.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in --out, or with the newest unfinished one.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")]


@train_app.command("dt", epilog=EXAMPLES)
def train_dt(
    dataset: options.Dataset = None,
    task: options.TaskName = None,
    size: options.Size = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    target: Target = None,
    seed: Seed = None,
    device: options.Device = None,
    out: Out = None,
    resume: Resume = False,
    config: options.ConfigFile = None,
    settings: options.Settings = None,
    dry_run: DryRun = False,
    json_mode: options.JsonMode = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    no_color: options.NoColor = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Train a Decision Transformer on a dataset.

    The run keeps its configuration, metrics, the last and the best checkpoint. Ctrl-C saves; --resume goes on exactly.
    """
    output = Output(json_mode=json_mode, quiet=quiet, verbose=verbose, no_color=no_color, no_progress=no_progress)
    flags = flag_values(dataset, task, steps, batch_size, target, seed, device)
    run_training(output, "dt", size, flags, config, settings, out, resume=resume, dry_run=dry_run)


@train_app.command("bc", epilog=BC_EXAMPLES)
def train_bc(
    dataset: options.Dataset = None,
    task: options.TaskName = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    device: options.Device = None,
    out: Out = None,
    resume: Resume = False,
    config: options.ConfigFile = None,
    settings: options.Settings = None,
    dry_run: DryRun = False,
    json_mode: options.JsonMode = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    no_color: options.NoColor = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Clone the behaviour of the best trajectories: the baseline that a Decision Transformer should beat."""
    output = Output(json_mode=json_mode, quiet=quiet, verbose=verbose, no_color=no_color, no_progress=no_progress)
    flags = flag_values(dataset, task, steps, batch_size, None, seed, device)
    run_training(output, "bc", None, flags, config, settings, out, resume=resume, dry_run=dry_run)


def flag_values(
    dataset: str | None,
    task: str | None,
    steps: int | None,
    batch_size: int | None,
    target: str | None,
    seed: int | None,
    device: str | None,
) -> dict[str, Any]:
    """Return the flags that were given, by configuration key."""
    flags = {
        "data.dataset": dataset,
        "task": task,
        "train.steps": steps,
        "train.batch_size": batch_size,
        "eval.targets": options.parse_numbers(target, "--target") if target else None,
        "train.seed": seed,
        "train.device": device,
    }
    return {key: value for key, value in flags.items() if value is not None}


def run_training(
    output: Output,
    algo: str,
    size: str | None,
    flags: dict[str, Any],
    config_file: Path | None,
    settings: list[str] | None,
    out: Path | None,
    *,
    resume: bool,
    dry_run: bool,
) -> None:
    """Resolve the configuration, train, print the result."""
    from gq.config import flatten, parse_settings, read_config_file
    from gq.engine.offline import prepare, train
    from gq.engine.runs import resume_config

    given = flatten(read_config_file(config_file)) if config_file else {}
    given = {key: value for key, value in given.items() if key != "algo"}
    given |= parse_settings(settings or []) | flags
    if resume:
        out, wanted = resume_config(algo, size, given, out)
    else:
        wanted = preset(algo, size or str(given.pop("size", "1m"))).replace(given)
    prepared = prepare(wanted)
    config = prepared[0]
    if "data.dataset" not in given and not resume:
        output.note(f"dataset: {config.data.dataset}, the one downloaded last")
    if dry_run:
        from gq.config import to_toml

        output.result(config.to_dict(), quiet=out or "", human=to_toml(config).rstrip())
        return
    from gq import threads

    threads.prepare()
    with TrainingView(output) as view:
        result = train(config, out, resume=resume, listener=view, prepared=prepared)
    document = {**dataclasses.asdict(result), "run": str(result.run)}
    output.result(document, quiet=result.run, human=view.summary(result))


def preset(algo: str, size: str) -> Any:
    """Return the preset of an algorithm."""
    from gq import presets

    return presets.dt(size) if algo == "dt" else presets.bc()

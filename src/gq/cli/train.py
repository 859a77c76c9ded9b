"""`gq train dt`, `gq train bc` and `gq train odt`; what all of `gq train` share."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gq.cli import options
from gq.cli.output import Output
from gq.cli.training_view import TrainingView, clock
from gq.errors import UsageError
from gq.parsing import parse_whole_number

if TYPE_CHECKING:
    from gq.config import DataRunConfig
    from gq.data.trajectories import Trajectories

EXAMPLES = """\b
Examples:
  gq train dt                            on the dataset downloaded last
  gq train dt --dataset data.hdf5 --task hopper --steps 5000
  gq train dt --size 0.6b --device cuda --batch-size auto
  gq train dt --set model.backbone=gpt2 --set model.num_kv_heads=4
  gq train dt --config my.toml --set data.mode=delayed --set eval.every=0
  gq train dt --out runs/a --resume      go on with a run
  torchrun --nproc-per-node 8 -m gq train dt --size 1.9b"""
BC_EXAMPLES = """\b
Examples:
  gq train bc                            the best tenth of the last dataset
  gq train bc --dataset data.hdf5 --set data.top_fraction=0.25"""
ODT_EXAMPLES = """\b
Examples:
  gq train odt                           on the dataset downloaded last
  gq train odt --size 1m --device cuda
  gq train odt --size paper --dataset d4rl/hopper-medium-v2
  gq train odt --set model.positions=timestep --set optim.optimizer=adamw"""
GROUP_EXAMPLES = """\b
Examples:
  gq train dt                            on the dataset downloaded last
  gq train bc --dataset data.hdf5        the baseline on the same data
  gq train tdmpc2 --task cartpole-swingup --size 1
  gq train dt --help                     all options"""

train_app = typer.Typer(help="Train a policy.", epilog=GROUP_EXAMPLES, no_args_is_help=True, rich_markup_mode=None)

Steps = Annotated[int | None, typer.Option(metavar="N", help="Updates.")]
AUTO = "auto"
BatchSize = Annotated[
    str | None, typer.Option(metavar="N|auto", help="Windows per update; auto measures this machine for a few seconds.")
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Seed of weights, batches and dropout.")]
OnlineSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="tiny (minutes on a CPU; the default), paper, or as for train dt.",
        autocompletion=options.complete_from(lambda: ["tiny", "paper"], options.known_sizes),
    ),
]
Target = Annotated[str | None, typer.Option(metavar="A,B,C", help="Target returns; default: from the dataset.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="The run's folder; default: a new one in the cache.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in --out, or with the newest unfinished one.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")]


@train_app.command("dt", epilog=EXAMPLES, short_help="Train a Decision Transformer.")
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


@train_app.command("bc", epilog=BC_EXAMPLES, short_help="Clone the best trajectories, as a baseline.")
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


@train_app.command("odt", epilog=ODT_EXAMPLES, short_help="Pretrain an Online Decision Transformer.")
def train_odt(
    dataset: options.Dataset = None,
    task: options.TaskName = None,
    size: OnlineSize = None,
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
    """Pretrain an Online Decision Transformer on a dataset; `gq finetune` then goes online with it.

    It learns a distribution over actions, whose entropy is kept above a target so that there is something to explore.
    """
    output = Output(json_mode=json_mode, quiet=quiet, verbose=verbose, no_color=no_color, no_progress=no_progress)
    flags = flag_values(dataset, task, steps, batch_size, target, seed, device)
    run_training(output, "odt", size, flags, config, settings, out, resume=resume, dry_run=dry_run)


def flag_values(
    dataset: str | None,
    task: str | None,
    steps: int | None,
    batch_size: str | None,
    target: str | None,
    seed: int | None,
    device: str | None,
) -> dict[str, Any]:
    """Return the flags that were given, by configuration key.

    Raises:
        UsageError: a dataset without a name, as from an empty shell variable, or a batch size that is none.
    """
    if dataset == "":
        raise UsageError("--dataset is empty", hint="name an id or a path, or leave --dataset away")
    if batch_size not in (None, AUTO) and parse_whole_number(str(batch_size).removeprefix("-")) is None:
        raise UsageError(f"--batch-size {batch_size} is not a number", hint="for example --batch-size 64, or auto")
    flags = {
        "data.dataset": dataset,
        "task": task,
        "train.steps": steps,
        "train.batch_size": int(batch_size) if batch_size and batch_size != AUTO else batch_size,
        "eval.targets": options.parse_numbers(target, "--target") or None,
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
    is_measured = flags.get("train.batch_size") == AUTO
    if is_measured:
        flags = {key: value for key, value in flags.items() if key != "train.batch_size"}
        if resume:
            raise UsageError("a run that goes on keeps its batch size", hint="leave --batch-size auto away")
    given = given_settings(config_file, settings) | flags
    from gq.config import DataRunConfig

    if resume:
        from gq.engine.runs import resume_config, was_killed_at_birth

        if out and was_killed_at_birth(out):
            output.note(f"{out} has nothing saved yet: starting again")
            resume = False
    if resume:
        out, wanted = resume_config(algo, size, given, out)
        assert isinstance(wanted, DataRunConfig)
    else:
        wanted = preset(algo, size, given).replace(given)
    from gq.engine.offline import prepare, train
    from gq.engine.runs import refuse_filled
    from gq.paths import new_run_folder, runs_folder

    prepared = prepare(wanted)
    config = prepared[0]
    if "data.dataset" not in given and not resume:
        output.note(f"dataset: {config.data.dataset}, the one downloaded last")
    from gq import threads

    threads.prepare()
    if is_measured:
        if out:
            refuse_filled(out, algo)  # before it takes time
        config = choose_batch_size(output, config, prepared[1])
        prepared = (config, prepared[1])
    if dry_run:
        show_plan(output, config, out or new_run_folder(config.task, config.algo, config.size))
        return
    with TrainingView(output, config) as view:
        result = train(config, out, resume=resume, listener=view, prepared=prepared)
    best = "" if result.best_step is None else f", the best at step {result.best_step}"
    output.note(f"{result.steps} steps in {clock(result.seconds)}{best}")
    document = {**dataclasses.asdict(result), "run": str(result.run)}
    output.result(document, quiet=result.run, human=view.results(result))
    name = "--latest" if result.run.parent == runs_folder() else result.run
    output.note(f"next: gq eval {name}" + (f", or gq finetune {name}" if algo == "odt" else ""))


def choose_batch_size(output: Output, config: "DataRunConfig", trajectories: "Trajectories") -> "DataRunConfig":
    """Return the configuration with the batch size that suits this machine, and say what was measured."""
    from gq.config import OfflineConfig
    from gq.engine.batch_size import choose_batch_size

    assert isinstance(config, OfflineConfig)
    output.note("measuring batch sizes for a few seconds")
    choice = choose_batch_size(config, trajectories)
    output.note(str(choice))
    rate = config.optim.learning_rate
    duration = clock(choice.training_seconds)
    output.note(f"{config.train.steps} updates take about {duration} besides evaluation")
    output.note(f"the learning rate stays {rate:g}, whatever the batch size")
    return config.replace({"train.batch_size": choice.batch_size})


def given_settings(config_file: Path | None, settings: list[str] | None) -> dict[str, Any]:
    """Return what --config and --set give, by dotted key."""
    from gq.config import flatten, parse_settings, read_config_file

    given = flatten(read_config_file(config_file)) if config_file else {}
    return {key: value for key, value in given.items() if key != "algo"} | parse_settings(settings or [])


def show_plan(output: Output, config: "DataRunConfig", out: Path) -> None:
    """Print what a run would be: the whole configuration, and what follows from it without loading torch."""
    from gq.config import DTConfig, ODTConfig, to_toml
    from gq.envs.tasks import resolve_task
    from gq.parameters import parameter_formula, training_memory_bytes

    document: dict[str, Any] = {"run": str(out), "config": config.to_dict()}
    if isinstance(config, DTConfig | ODTConfig):
        task = resolve_task(config.task)
        parameters = parameter_formula(config.model, task.observation_dim, task.action_dim)
        num_windows = -(-config.train.batch_size // config.train.num_micro_batches)
        memory_bytes = training_memory_bytes(config.model, parameters, num_windows)
        document |= {"parameters": parameters, "training_memory_bytes": memory_bytes}
        output.note(f"{parameters:,} parameters, about {memory_bytes / 2**30:.2f} GiB in training")
    output.note(f"run: {out}")
    output.result(document, quiet=out, human=to_toml(config).rstrip())


def preset(algo: str, size: str | None, given: dict[str, Any]) -> Any:
    """Return the preset of an algorithm; takes the size out of the given settings where it chooses the preset."""
    from gq import presets

    if algo == "bc":
        return presets.bc()
    in_file = given.pop("size", None)
    stated = size or in_file
    if algo == "odt":
        from gq.paths import last_dataset

        return presets.odt(str(stated or "tiny"), given.get("data.dataset") or last_dataset())
    return presets.dt(str(stated or "1m"))

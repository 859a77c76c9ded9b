"""`gq train dt`, `gq train bc` and `gq train odt`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gq.cli import options
from gq.cli.launching import Launch, result_table, show_plan, show_result
from gq.cli.output import Output
from gq.cli.training_view import TrainingView, clock
from gq.errors import UsageError

if TYPE_CHECKING:
    from gq.config import DataRunConfig

EXAMPLES = """\b
Examples:
  gq train dt                            on the dataset downloaded last
  gq train dt --dataset data.hdf5 --task hopper --steps 5000
  gq train dt --size 0.6b --device cuda
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
BatchSize = Annotated[int | None, typer.Option(metavar="N", help="Windows per update.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Seed of weights, batches and dropout.")]
OnlineSize = Annotated[
    str | None,
    options.completed(
        "SIZE",
        "tiny (minutes on a CPU; the default), paper, or as for train dt.",
        lambda: ["tiny", "paper"],
        options.known_sizes,
    ),
]
Target = Annotated[str | None, typer.Option(metavar="A,B,C", help="Target returns; default: from the dataset.")]


@train_app.command("dt", epilog=EXAMPLES, short_help="Train a Decision Transformer.")
@options.grouped
def train_dt(
    dataset: options.Dataset = None,
    task: options.TaskName = None,
    size: options.Size = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    target: Target = None,
    seed: Seed = None,
    *,
    launch: Launch,
    output: Output,
) -> None:
    """Train a Decision Transformer on a dataset.

    The run keeps its configuration, metrics, the last and the best checkpoint. Ctrl-C saves; --resume goes on exactly.
    """
    flags = flag_values(dataset, task, steps, batch_size, target, seed)
    run_training(output, "dt", size, flags, launch)


@train_app.command("bc", epilog=BC_EXAMPLES, short_help="Clone the best trajectories, as a baseline.")
@options.grouped
def train_bc(
    dataset: options.Dataset = None,
    task: options.TaskName = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    *,
    launch: Launch,
    output: Output,
) -> None:
    """Clone the behaviour of the best trajectories: the baseline that a Decision Transformer should beat."""
    flags = flag_values(dataset, task, steps, batch_size, None, seed)
    run_training(output, "bc", None, flags, launch)


@train_app.command("odt", epilog=ODT_EXAMPLES, short_help="Pretrain an Online Decision Transformer.")
@options.grouped
def train_odt(
    dataset: options.Dataset = None,
    task: options.TaskName = None,
    size: OnlineSize = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    target: Target = None,
    seed: Seed = None,
    *,
    launch: Launch,
    output: Output,
) -> None:
    """Pretrain an Online Decision Transformer on a dataset; `gq finetune` then goes online with it.

    It learns a distribution over actions, whose entropy is kept above a target so that there is something to explore.
    """
    flags = flag_values(dataset, task, steps, batch_size, target, seed)
    run_training(output, "odt", size, flags, launch)


def flag_values(
    dataset: str | None,
    task: str | None,
    steps: int | None,
    batch_size: int | None,
    target: str | None,
    seed: int | None,
) -> dict[str, Any]:
    """Return flags by configuration key, None where one was not given.

    Raises:
        UsageError: a dataset without a name, as from an empty shell variable.
    """
    if dataset == "":
        raise UsageError("--dataset is empty", hint="name an id or a path, or omit --dataset")
    return {
        "data.dataset": dataset,
        "task": task,
        "train.steps": steps,
        "train.batch_size": batch_size,
        "eval.targets": options.parse_numbers(target, "--target") or None,
        "train.seed": seed,
    }


def run_training(output: Output, algo: str, size: str | None, flags: dict[str, Any], launch: Launch) -> None:
    """Resolve the configuration, train, print the result."""
    given = launch.given(flags)
    from gq.config import DataRunConfig

    stored = launch.stored(output, algo, size, given)
    out, wanted = stored or (launch.out, preset(algo, size, given).replace(given))
    assert isinstance(wanted, DataRunConfig)
    from gq.learn import prepare

    if wanted.data.dataset and not launch.dry_run:
        simulate_missing(output, wanted.data.dataset)
    config, trajectories = prepare(wanted)
    if "data.dataset" not in given and not stored:
        output.note(f"dataset: {config.data.dataset}, the one downloaded last")
    from gq import threads

    threads.prepare()
    if launch.dry_run:
        facts = transformer_facts(output, config)
        show_plan(output, config, out, **facts)
        return
    from gq.training.offline import train

    with TrainingView(output, config) as view:
        result = train(config, trajectories, out, resume=stored is not None, listener=view)
    best = "" if result.best_step is None else f", the best at step {result.best_step}"
    output.note(f"{result.steps} steps in {clock(result.seconds)}{best}")
    targets = [f"{summary.target_return:g}" for summary in result.evaluation]
    human = result_table(output, result, targets, headings=("target", "length"))
    show_result(output, result, human, more="gq finetune" if algo == "odt" else "")


def simulate_missing(output: Output, name: str) -> None:
    """Make a built-in dataset that is not in the cache; what needs the network is left to `gq download`."""
    from gq.cli.download import fetch_all
    from gq.datasets.cache import cached
    from gq.datasets.catalog import ENTRIES
    from gq.datasets.loading import canonical_name

    entry = ENTRIES.get(canonical_name(name))
    if entry and entry.kind == "builtin" and not cached(entry):
        output.note(f"{entry.id} is not in the cache: simulating it first")
        fetch_all(output, [entry], {"num_transitions": None, "force": False, "offline": False}, {})


def transformer_facts(output: Output, config: "DataRunConfig") -> dict[str, int]:
    """Return what follows from a configuration without loading torch, and say so."""
    from gq.config import DTConfig, ODTConfig
    from gq.models.costs import parameter_formula, training_memory_bytes

    if not isinstance(config, DTConfig | ODTConfig):
        return {}
    task = config.environment
    dims = {"observation_dim": task.observation_dim, "action_dim": task.action_dim}
    parameters = parameter_formula(config.model, **dims)
    num_windows = -(-config.train.batch_size // config.train.num_micro_batches)
    memory_bytes = training_memory_bytes(config.model, **dims, batch_size=num_windows)
    output.note(f"{parameters:,} parameters, about {memory_bytes / 2**30:.2f} GiB in training")
    return {"parameters": parameters, "training_memory_bytes": memory_bytes}


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

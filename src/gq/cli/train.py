"""`gq train dt`, `bc`, `odt`, `td3bc` and `tdmpc2`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gq.cli import options
from gq.cli.launching import Launch, result_table, show_plan, show_result
from gq.cli.output import Output
from gq.cli.training_view import TrainingView, clock
from gq.errors import UsageError

if TYPE_CHECKING:
    from gq.config import DataRunConfig, TDMPC2Config

EXAMPLES = """\b
Examples:
  gq train dt                            on the dataset downloaded last
  gq train dt --dataset data.hdf5 --task hopper --steps 5000
  gq train dt --size 0.6b --device cuda
  gq train dt --set model.backbone=gpt2 --set model.num_kv_heads=4
  gq train dt --config my.toml --set data.mode=delayed --set eval.every=0
  gq train dt --out runs/a --resume      resume a run
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
TD3BC_EXAMPLES = """\b
Examples:
  gq train td3bc                         TD3+BC on the last dataset
  gq train td3bc --recipe rebrac --dataset d4rl/hopper-medium-v2
  gq train td3bc --steps 1000000         as long as in the papers
  gq train td3bc --recipe rebrac --set critic.bc_weight=0.01"""
WORLD_EXAMPLES = """\b
Examples:
  gq train tdmpc2 --task cartpole-swingup --size 1 --decisions 50000
  gq train tdmpc2 --task dog-run --environments 8 --device cuda
  gq train tdmpc2 --task HalfCheetah-v5
  gq train tdmpc2 --task mypackage:MyRobot-v0 --env-kwargs '{"mass": 2.0}'
  gq train tdmpc2 --task walker-run --set planner.num_samples=256
  gq train tdmpc2 --resume               resume the newest one
  torchrun --nproc-per-node 8 -m gq train tdmpc2 --task dog-run"""
GROUP_EXAMPLES = """\b
Examples:
  gq train dt                            on the dataset downloaded last
  gq train bc --dataset data.hdf5        the baseline on the same data
  gq train tdmpc2 --task cartpole-swingup --size 1
  gq train dt --help                     all options"""

train_app = typer.Typer(help="Train a policy.", epilog=GROUP_EXAMPLES, no_args_is_help=True, rich_markup_mode=None)

OnlineSize = Annotated[
    str | None,
    options.completed(
        "SIZE",
        "tiny (minutes on a CPU; the default), paper, or as for train dt.",
        lambda: ["tiny", "paper"],
        options.known_sizes,
    ),
]
Recipe = Annotated[
    str | None,
    options.completed("NAME", "td3bc (the default) or rebrac.", lambda: ["td3bc", "rebrac"]),
]
Target = Annotated[str | None, options.targets("Target returns; default: from the dataset.")]
WorldTask = Annotated[
    str | None,
    options.completed(
        "NAME",
        "DeepMind Control task, such as dog-run, Gymnasium id, or package.module:Id-v0.",
        options.known_control_tasks,
        options.known_tasks,
    ),
]
WorldSize = Annotated[
    str | None,
    options.completed(
        "SIZE", "1, 5, 19, 48 or 317, in million parameters; default: 5.", options.known_world_model_sizes
    ),
]


@dataclass(frozen=True)
class Learning:
    """What is learnt from a dataset, and for how long."""

    dataset: options.Dataset = None
    task: options.TaskName = None
    steps: Annotated[int | None, options.number("Updates.")] = None
    batch_size: Annotated[int | None, options.number("Windows per update.")] = None
    seed: Annotated[int | None, options.number("Seed of weights, batches and dropout.")] = None

    def flags(self) -> dict[str, Any]:
        """Return these by configuration key.

        Raises:
            UsageError: a dataset without a name, as from an empty shell variable.
        """
        if self.dataset == "":
            raise UsageError("--dataset is empty", hint="name an id or a path, or omit --dataset")
        return {
            "data.dataset": self.dataset,
            "task": self.task,
            "train.steps": self.steps,
            "train.batch_size": self.batch_size,
            "train.seed": self.seed,
        }


@dataclass(frozen=True)
class WorldLearning:
    """What a world model is learnt from, and for how long."""

    task: WorldTask = None
    decisions: Annotated[int | None, options.number("Stop after so many; default: 500000.")] = None
    environments: Annotated[int | None, options.number("That are stepped side by side; default: 1.")] = None
    seed: Annotated[int | None, options.number("Seed of weights, episodes, batches and plans.")] = None

    def flags(self) -> dict[str, Any]:
        """Return these by configuration key."""
        return {
            "task": self.task,
            "train.decisions": self.decisions,
            "train.num_environments": self.environments,
            "train.seed": self.seed,
        }


@dataclass(frozen=True)
class Seeds:
    """Several runs that differ in their seed alone."""

    seeds: Annotated[
        str | None, typer.Option(metavar="A-B", help="A sweep over seeds, such as 0-4 or 0,3,7; repeat to continue it.")
    ] = None
    jobs: Annotated[int, options.number("With --seeds: runs at a time.", min=1)] = 1


@train_app.command("dt", epilog=EXAMPLES, short_help="Train a Decision Transformer.")
@options.grouped
def train_dt(
    *,
    learning: Learning,
    environment: options.Environment,
    size: options.Size = None,
    target: Target = None,
    launch: Launch,
    seeds: Seeds,
    output: Output,
) -> None:
    """Train a Decision Transformer on a dataset.

    The run keeps its configuration, metrics, the last and the best checkpoint. Ctrl-C saves; --resume goes on exactly.
    """
    flags = learning.flags() | environment.flags() | with_targets(target)
    if not train_seeds(output, launch, seeds, "dt", size, flags):
        train_on_data(output, launch, "dt", size, flags)


@train_app.command("bc", epilog=BC_EXAMPLES, short_help="Clone the best trajectories, as a baseline.")
@options.grouped
def train_bc(
    *, learning: Learning, environment: options.Environment, launch: Launch, seeds: Seeds, output: Output
) -> None:
    """Clone the behaviour of the best trajectories: the baseline that a Decision Transformer should beat."""
    flags = learning.flags() | environment.flags()
    if not train_seeds(output, launch, seeds, "bc", None, flags):
        train_on_data(output, launch, "bc", None, flags)


@train_app.command("odt", epilog=ODT_EXAMPLES, short_help="Pretrain an Online Decision Transformer.")
@options.grouped
def train_odt(
    *,
    learning: Learning,
    environment: options.Environment,
    size: OnlineSize = None,
    target: Target = None,
    launch: Launch,
    seeds: Seeds,
    output: Output,
) -> None:
    """Pretrain an Online Decision Transformer on a dataset; `gq finetune` then goes online with it.

    It learns a distribution over actions, whose entropy is kept above a target so that there is something to explore.
    """
    flags = learning.flags() | environment.flags() | with_targets(target)
    if not train_seeds(output, launch, seeds, "odt", size, flags):
        train_on_data(output, launch, "odt", size, flags)


@train_app.command("td3bc", epilog=TD3BC_EXAMPLES, short_help="Learn values and a policy near the data.")
@options.grouped
def train_td3bc(
    *,
    learning: Learning,
    environment: options.Environment,
    recipe: Recipe = None,
    launch: Launch,
    seeds: Seeds,
    output: Output,
) -> None:
    """Train TD3+BC or ReBRAC, the value-based baselines: a critic, and a policy that stays near the data.

    Both take their papers' settings, ReBRAC its published weights for each D4RL dataset.
    """
    flags = learning.flags() | environment.flags()
    if not train_seeds(output, launch, seeds, "td3bc", recipe, flags):
        train_on_data(output, launch, "td3bc", recipe, flags)


@train_app.command("tdmpc2", epilog=WORLD_EXAMPLES, short_help="Train a TD-MPC2 agent in its environment.")
@options.grouped
def train_tdmpc2(
    *,
    learning: WorldLearning,
    environment: options.Environment,
    size: WorldSize = None,
    launch: Launch,
    seeds: Seeds,
    output: Output,
) -> None:
    """Train a TD-MPC2 agent: it learns a world model from what it does, and plans with it what to do.

    A decision is one choice of an action; DeepMind Control tasks apply each for two frames. The run keeps all that it
    did, so Ctrl-C saves and --resume goes on exactly.
    """
    flags = learning.flags() | environment.flags()
    if train_seeds(output, launch, seeds, "tdmpc2", size, flags):
        return
    given = launch.given(flags)
    stored = launch.stored(output, "tdmpc2", size, given)
    from gq import threads
    from gq.config import TDMPC2Config
    from gq.datasets.recipes import by_name
    from gq.presets import with_task

    out, resolved = stored or (launch.folder, with_task(by_name("tdmpc2", size, given).replace(given)))
    assert isinstance(resolved, TDMPC2Config)
    if launch.dry_run:
        show_plan(output, resolved, out, **world_model_facts(output, resolved))
        return
    threads.prepare()
    from gq.training.world import train_world_model

    with TrainingView(output, resolved) as view:
        result = train_world_model(resolved, out, resume=stored is not None, listener=view)
    output.note(f"{result.decisions} decisions, {result.steps} updates, {clock(result.seconds)}")
    human = result_table(output, result, ["plan", "policy"], headings=("mode", "decisions"))
    show_result(output, result, human)


def train_seeds(
    output: Output, launch: Launch, seeds: Seeds, algo: str, size: str | None, flags: dict[str, Any]
) -> bool:
    """Run a sweep over --seeds; return False where there are none.

    Raises:
        UsageError: --seed is given too, or a configuration is wrong.
    """
    if seeds.seeds is None:
        return False
    if flags.pop("train.seed", None) is not None:
        raise UsageError("--seed and --seeds are given", hint="give one of them")
    from gq.cli.sweep import Machine, launch_plan
    from gq.sweeps.plan import complete, parse_seeds, seeds_plan, sweep_name

    numbers = parse_seeds(seeds.seeds)
    given = complete(algo, launch.given(flags) | ({"size": size} if size else {}))
    name = launch.name or (launch.out.name if launch.out else sweep_name(algo, given))
    plan = seeds_plan(name, algo, given, numbers)
    launch_plan(output, plan, launch.out, Machine(jobs=seeds.jobs), print_only=launch.dry_run)
    return True


def with_targets(target: str | None) -> dict[str, Any]:
    """Return --target by configuration key."""
    return {"eval.targets": options.parse_numbers(target, "--target") or None}


def train_on_data(output: Output, launch: Launch, algo: str, size: str | None, flags: dict[str, Any]) -> None:
    """Resolve the configuration, train, print the result."""
    given = launch.given(flags)
    from gq.config import DataRunConfig
    from gq.datasets.recipes import by_name

    stored = launch.stored(output, algo, size, given)
    out, wanted = stored or (launch.folder, by_name(algo, size, given).replace(given))
    assert isinstance(wanted, DataRunConfig)
    from gq.learn import prepare

    if wanted.data.dataset and not launch.dry_run:
        from gq.cli.download import simulate_missing

        simulate_missing(output, wanted.data.dataset)
    config, trajectories = prepare(wanted)
    if "data.dataset" not in given and not stored:
        output.note(f"dataset: {config.data.dataset}, the one downloaded last")
    from gq import threads

    threads.prepare()
    if launch.dry_run:
        show_plan(output, config, out, **transformer_facts(output, config))
        return
    from gq.repair.doubts import doubts
    from gq.training.offline import train

    for line in [] if stored else doubts(trajectories):
        output.note(line)
    with TrainingView(output, config) as view:
        result = train(config, trajectories, out, resume=stored is not None, listener=view)
    best = "" if result.best_step is None else f", the best at step {result.best_step}"
    output.note(f"{result.steps} steps in {clock(result.seconds)}{best}")
    targets = [f"{summary.target_return:g}" for summary in result.evaluation]
    human = result_table(output, result, targets, headings=("target", "length"))
    show_result(output, result, human, more="gq finetune" if algo == "odt" else "")


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


def world_model_facts(output: Output, config: "TDMPC2Config") -> dict[str, int]:
    """Return what follows from a configuration without loading torch, and say so."""
    from gq.models.world_config import parameter_counts

    task = config.environment
    counts = parameter_counts(
        config.model,
        observation_dim=task.observation_dim,
        action_dim=task.action_dim,
        episodic=task.can_terminate,
    )
    parameters = sum(counts.values())
    frames = config.train.decisions * task.action_repeat
    output.note(f"{parameters:,} parameters, {config.train.decisions:,} decisions, which are {frames:,} frames")
    return {"parameters": parameters, "frames": frames}

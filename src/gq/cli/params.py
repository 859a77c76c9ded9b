"""`gq params`."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gq.cli import options
from gq.cli.output import Output
from gq.errors import GqError, UsageError

if TYPE_CHECKING:
    from gq.config import TDMPC2Config, TransformerConfig
    from gq.costs.transformers import DevicePlan, ParamsReport
    from gq.costs.world import WorldParamsReport
    from gq.envs.tasks import Task

WORLD = "tdmpc2"
EXAMPLES = """\b
Examples:
  gq params                              every size
  gq params 0.6b --dataset humanoid      with tokens per parameter
  gq params tdmpc2 --task dog-run        world models, their plans and updates
  gq params --device h100 --world-size 8 --size 1.9b    memory and time there
  gq params runs/a --json"""


MODEL_HELP = "tdmpc2 for world models; default: all sizes of transformers."
TASK_HELP = "Default: the dataset's or run's, else Humanoid-v5, for tdmpc2 dog-run."
SIZE_HELP = "As SIZE; of tdmpc2: 1, 5, 19, 48 or 317; default: all."
DATASET_HELP = "Dataset id or file, for the tokens per parameter."
BATCH_HELP = "Windows computed at once, for the memory, or in an update of --device; default: 64, of tdmpc2 256."
DEVICE_HELP = "Memory and time of training on it: h100, l4, ..., or cpu for this one."
MODELS = (options.known_sizes, lambda: [WORLD], options.known_runs)
TASKS = (options.known_tasks, options.known_control_tasks)
ALL_SIZES = (options.known_sizes, options.known_world_model_sizes)


@dataclasses.dataclass(frozen=True)
class Models:
    """Which models are meant."""

    model: Annotated[str | None, options.completed("SIZE|RUN|tdmpc2", MODEL_HELP, *MODELS, kind=typer.Argument)] = None
    latest: options.Latest = False
    size: Annotated[str | None, options.completed("SIZE", SIZE_HELP, *ALL_SIZES)] = None

    def resolve(self) -> tuple[str | None, str | None]:
        """Return the model, where a size alone is one, and the size. Raises UsageError."""
        from gq.models.config import SIZES
        from gq.paths import find_run

        model = str(find_run(None, latest=True)[0]) if self.model is None and self.latest else self.model
        return (self.size, None) if self.size in SIZES and model is None else (model, self.size)


@dataclasses.dataclass(frozen=True)
class Machine:
    """What models are trained on."""

    device: Annotated[str | None, options.completed("NAME", DEVICE_HELP, options.known_devices)] = None
    world_size: Annotated[int | None, options.number("Devices in one machine; default: 1.")] = None

    def check(self) -> None:
        """Raise UsageError for a number of devices that is none, or none of which is named."""
        if self.world_size is not None and (self.world_size < 1 or self.device is None):
            raise UsageError("--world-size is a number of devices", hint="for example --device h100 --world-size 8")


@options.grouped_as("model latest task size dataset batch_size machine output")
def params(
    *,
    models: Models,
    task: Annotated[str | None, options.completed("ID", TASK_HELP, *TASKS)] = None,
    dataset: Annotated[str | None, options.completed("ID|PATH", DATASET_HELP, options.known_datasets)] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help=BATCH_HELP)] = None,
    machine: Machine,
    output: Output,
) -> None:
    """Report what a model costs: parameters (formula and count), FLOPs, memory, tokens per parameter, plans."""
    from gq.models.config import SIZES

    model, size = models.resolve()
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"--batch-size {batch_size} is not a positive number", hint="for example --batch-size 64")
    machine.check()
    config = None if model is None or model in (WORLD, *SIZES) else run_config(model)
    if model == WORLD or (config and config.algo == WORLD):
        if dataset or machine.device:
            hint = "TD-MPC2 makes its own data: omit it" if dataset else "gq params tdmpc2, without --device"
            raise UsageError(f"{'--dataset' if dataset else '--device'} is for transformers", hint=hint)
        show_world_models(output, config, task, size, batch_size)
        return
    if size:
        raise UsageError("--size is for gq params tdmpc2", hint="gq params 0.6b, or gq params tdmpc2 --size 5")
    from gq import presets
    from gq.envs.specs import EnvironmentRequest, settle

    task, num_transitions = data_facts(dataset, task)
    found = config.environment if config and not task else settle(EnvironmentRequest(task or "Humanoid-v5"))
    configs = [config] if config else [presets.dt(name) for name in ([model] if model else SIZES)]
    if machine.device:
        changed = {"train.batch_size": batch_size} if batch_size else {}
        configs = [config.made_for(found).replace(changed) for config in configs]
        show_plans(output, configs, num_transitions, machine.device, machine.world_size or 1)
    else:
        show_transformers(output, configs, found, num_transitions, batch_size or 64)


def data_facts(dataset: str | None, task: str | None) -> tuple[str | None, int | None]:
    """The task, a dataset's where none is given, and how many transitions it has; None without one."""
    if not dataset:
        return task, None
    from gq.datasets.loading import load_dataset

    trajectories = load_dataset(dataset, task=task)
    return task or trajectories.task, trajectories.num_transitions


def run_config(name: str) -> Any:
    """The configuration of a run that is a transformer or a TD-MPC2 agent. Raises UsageError."""
    from gq.errors import suggest
    from gq.models.config import SIZES
    from gq.paths import find_run
    from gq.runs.folder import read_config

    try:
        folder, _ = find_run(name)
    except GqError as error:
        if any(run.startswith(name) for run in options.known_runs()):  # it fits several
            raise
        hint = suggest(name, [*SIZES, WORLD]) or error.hint
        raise UsageError(f"{name} is neither a size ({', '.join(SIZES)}), {WORLD} nor a run", hint=hint) from None
    config = read_config(folder)
    if config.algo in ("bc", "td3bc"):
        raise UsageError(f"{folder.name} is a {config.algo} run", hint="gq params knows transformers and world models")
    return config


def show_transformers(
    output: Output, configs: list["TransformerConfig"], task: "Task", num_transitions: int | None, batch_size: int
) -> None:
    """Print what Decision Transformers cost."""
    from gq.costs.transformers import report_config

    known: dict[str, Any] = {"num_transitions": num_transitions, "batch_size": batch_size}
    known |= {"observation_dim": task.observation_dim, "action_dim": task.action_dim}
    reports = [report_config(config.model, size=config.size, **known) for config in configs]
    document = {"task": task.id, "models": [dataclasses.asdict(report) for report in reports]}
    too_large = [report for report in reports if report.warning]
    if len(too_large) == 1:
        output.warn(too_large[0].warning)
    elif too_large:
        names = ", ".join(report.size for report in too_large)
        output.warn(f"less than a tenth of a token of data per parameter: {names} can memorise the data")
    counts = "\n".join(str(report.parameters) for report in reports)
    output.result(document, quiet=counts, human=transformer_tables(output, reports, task.id))


def transformer_tables(output: Output, reports: list["ParamsReport"], task: str) -> Any:
    """The counts and the costs as two tables, with what differs from the published count."""
    from rich.console import Group

    counts, costs = [], []
    for r in reports:
        published = f"{r.parameters_published:,}" if r.parameters_published else "-"
        agrees = "=" if r.parameters == r.parameters_formula else "differs from"
        counts.append((r.size, f"{r.parameters:,}", f"{agrees} {r.parameters_formula:,}", published))
        ratio = "-" if r.tokens_per_parameter is None else f"{r.tokens_per_parameter:.3g}"
        flops = (f"{r.flops_per_token / 1e6:,.1f} M", f"{r.training_flops_per_token / 1e6:,.1f} M")
        memory = (f"{r.training_memory_bytes / 2**30:.2f} GiB", f"{r.kv_cache_bytes / 2**20:.2f} MiB")
        costs.append((r.size, *flops, *memory, ratio))
    largest, notes = reports[-1], []
    if largest.published_difference:
        terms = ", ".join(f"{name} {count:+,}" for name, count in largest.published_difference.items())
        notes.append(f"published - counted for {largest.size}: {terms}")
    return Group(
        f"Decision Transformers for {task}",
        output.table(["size", "counted", "formula", "published formula"], counts),
        output.table(["size", "forward", "training", "memory", "KV cache", "data"], costs),
        f"forward, training: FLOPs per token; memory: training on {largest.batch_size} windows at once;",
        "KV cache: one episode in bfloat16; data: tokens of the dataset per parameter",
        *notes,
    )


def show_plans(
    output: Output, configs: list["TransformerConfig"], num_transitions: int | None, device_name: str, world_size: int
) -> None:
    """Print what training takes on a device: of one size or run in all ways, or of all sizes in their best ways."""
    from rich.console import Group

    from gq.costs.transformers import ASSUMED_TRANSITIONS, UTILISATION, best_way, devices_needed, ways_to_train
    from gq.devices import resolve_device

    assumed = "" if num_transitions else ", assumed"
    num_transitions = num_transitions or ASSUMED_TRANSITIONS
    device = resolve_device(device_name)
    ways = [ways_to_train(one, device, world_size=world_size, num_transitions=num_transitions) for one in configs]
    needed = [devices_needed(config, device, num_transitions) for config in configs]
    best = [best_way(each) for each in ways]
    as_dicts = [[dataclasses.asdict(way) for way in each] for each in ways]
    models = [
        {"size": one.size, "devices_needed": number, "best": dataclasses.asdict(one), "ways": each}
        for one, number, each in zip(best, needed, as_dicts, strict=True)
    ]
    document = {"task": configs[0].task, "device": dataclasses.asdict(device), "world_size": world_size}
    document |= {"num_transitions": num_transitions, "models": models}
    name = device.name if world_size == 1 else f"{world_size} x {device.name}"
    rate = f"{device.flops(best[0].bfloat16) / 1e12:.3g} TFLOP/s{', measured here' if device.measured else ''}"
    human = Group(
        f"Training Decision Transformers for {configs[0].task} on {name}",
        plan_table(output, ways[0] if len(ways) == 1 else best),
        *(verdict(one, number) for one, number in zip(best, needed, strict=True) if len(best) == 1 or not one.fits),
        f"time: if matrix products reach {100 * UTILISATION:.0f} % of {rate}; small models reach less, see mfu in a "
        "run's times.jsonl",
        f"data: {num_transitions:,} transitions{assumed}",
    )
    output.result(document, quiet="\n".join(str(one.memory_bytes) for one in best), human=human)


def plan_table(output: Output, plans: list["DevicePlan"]) -> Any:
    """Memory and time, one row for each way to train."""
    from gq.cli.training_view import clock

    def gibibytes(num_bytes: int) -> str:
        return f"{num_bytes / 2**30:.2f} GiB"

    rows = []
    for one in plans:
        ways = [one.parallel] * (one.world_size > 1) + ["checkpointed"] * one.checkpoint_activations
        used = (one.memory.weights, one.memory.gradients, one.memory.optimizer, one.memory.activations)
        memory = [gibibytes(part) for part in (*used, one.memory_bytes - sum(used), one.memory_bytes)]
        times = (f"{1e3 * one.update_seconds:.2f} ms", clock(one.training_seconds))
        rows.append((one.size, " ".join(ways) or "plain", *memory, "yes" if one.fits else "no", *times))
    headings = ["size", "way", "weights", "gradients", "optimiser", "activations", "rest"]
    headings += [f"of {gibibytes(plans[0].device_memory_bytes)}", "fits", "update", f"{plans[0].steps} updates"]
    return output.table(headings, rows, num_left=2)


def verdict(best: "DevicePlan", needed: int | None) -> str:
    """Whether a model fits, on how many devices it would, and with which settings."""
    what = f"{best.size}: {best.batch_size} windows in an update, {best.windows_per_device} at once on a device"
    if not best.fits:
        enough = f", it needs {needed} devices" if needed else " on any number: --set train.num_micro_batches=N"
        return f"{what}; does not fit{enough}"
    changed = [f"train.parallel={best.parallel}"] if best.world_size > 1 else []
    changed += ["train.checkpoint_activations=true"] if best.checkpoint_activations else []
    fewest = "" if needed == best.world_size else f" (memory would do with {needed})"
    return f"{what}; fits{fewest}" + (f"; best with --set {' --set '.join(changed)}" if changed else "")


def show_world_models(
    output: Output, config: "TDMPC2Config | None", task: str | None, size: str | None, batch_size: int | None
) -> None:
    """Print what the agent of a run costs, or without one those of one size or of all."""
    from gq.costs.world import report_world
    from gq.envs.specs import EnvironmentRequest, settle
    from gq.models.world_config import WORLD_MODEL_SIZES
    from gq.presets import tdmpc2

    if config and size:
        raise UsageError("--size does not go with a run, which has its own", hint="gq params tdmpc2 --size 5")
    found = config.environment if config and not task else settle(EnvironmentRequest(task or "dog-run"))
    configs = [config] if config else [tdmpc2(name, found.id) for name in ([size] if size else WORLD_MODEL_SIZES)]
    reports = [report_world(one.made_for(found), batch_size=batch_size) for one in configs]
    dims = {"observation_dim": found.observation_dim, "action_dim": found.action_dim}
    document = {"task": found.id, **dims, "models": [dataclasses.asdict(report) for report in reports]}
    counts = "\n".join(str(report.parameters) for report in reports)
    output.result(document, quiet=counts, human=world_tables(output, reports, found))


def world_tables(output: Output, reports: list["WorldParamsReport"], task: "Task") -> Any:
    """The counts of each network and the costs as two tables."""
    from rich.console import Group

    has_termination = any(report.parameters_termination for report in reports)
    names = ["encoder", "dynamics", "reward", "policy", "q", *(["termination"] if has_termination else [])]
    counts, costs = [], []
    for r in reports:
        networks = [f"{r.networks[name]:,}" for name in names]
        counts.append((r.size, f"{r.parameters:,}", f"{r.parameters_with_target:,}", *networks))
        memory = (f"{r.training_memory_bytes / 2**30:.2f} GiB", f"{r.replay_bytes / 2**30:.2f} GiB")
        plans = (f"{r.plan_multiply_adds / 1e9:,.1f} G", f"{r.original_plan_multiply_adds / 1e9:,.1f} G")
        others = (f"{r.policy_multiply_adds / 1e6:,.2f} M", f"{r.update_multiply_adds / 1e9:,.1f} G")
        costs.append((r.size, f"{r.weights_bytes / 2**20:,.1f} MiB", *memory, *plans, *others))
    notes = [
        f"weights: all networks; memory: an update on {reports[0].batch_size} sequences; replay: at its largest;",
        "plan, original, policy, update: multiply-adds of a plan, of the original's, of acting without, of an update",
    ]
    if has_termination:
        notes.append("parameters and with target are without the termination network, as they are published")
    return Group(
        f"TD-MPC2 for {task.id} (observations of {task.observation_dim} numbers, actions of {task.action_dim})",
        output.table(["size", "parameters", "with target", *names], counts),
        output.table(["size", "weights", "memory", "replay", "plan", "original", "policy", "update"], costs),
        *notes,
    )

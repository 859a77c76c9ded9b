"""`gq params`."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gq.cli import options
from gq.cli.output import Output
from gq.errors import GqError, UsageError

if TYPE_CHECKING:
    from gq.config import TDMPC2Config
    from gq.costs import ParamsReport

WORLD = "tdmpc2"
EXAMPLES = """\b
Examples:
  gq params                              every size
  gq params 0.6b --dataset humanoid      with tokens per parameter
  gq params tdmpc2 --task dog-run        world models, their plans and updates
  gq params --device h100 --world-size 8 --size 1.9b    memory and time there
  gq params runs/a --json"""


@options.grouped
def params(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="SIZE|RUN|tdmpc2",
            help="tdmpc2 for world models; default: all sizes of transformers.",
            autocompletion=options.complete_from(options.known_sizes, lambda: [WORLD], options.known_runs),
        ),
    ] = None,
    latest: options.Latest = False,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Default: the dataset's or run's, else Humanoid-v5, for tdmpc2 dog-run.",
            autocompletion=options.complete_from(options.known_tasks, options.known_control_tasks),
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="As SIZE; of tdmpc2: 1, 5, 19, 48 or 317; default: all.",
            autocompletion=options.complete_from(options.known_sizes, options.known_world_model_sizes),
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="ID|PATH",
            help="Dataset id or file, for the tokens per parameter.",
            autocompletion=options.complete_from(options.known_datasets),
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Windows computed at once, for the memory, or in an update of --device; default: 64, of tdmpc2 256.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Predict memory and time of training on it: h100, l4, ..., or cpu for this one.",
            autocompletion=options.complete_from(options.known_devices),
        ),
    ] = None,
    world_size: Annotated[
        int | None, typer.Option(metavar="N", help="So many of these devices in one machine; default: 1.")
    ] = None,
    *,
    output: Output,
) -> None:
    """Report what a model costs: parameters (formula and count), FLOPs, memory, tokens per parameter, plans."""
    from gq.models.sizes import SIZES

    if model is None and latest:
        from gq.paths import find_run

        model = str(find_run(None, latest=True)[0])
    if size in SIZES and model is None:
        model, size = size, None
    refuse_numbers(batch_size, device, world_size)
    config = None if model is None or model in (WORLD, *SIZES) else run_config(model)
    if model == WORLD or (config and config.algo == WORLD):
        if dataset or device:
            hint = "TD-MPC2 makes its own data: leave it away" if dataset else "gq params tdmpc2, without --device"
            raise UsageError(f"{'--dataset' if dataset else '--device'} is for transformers", hint=hint)
        show_world_models(output, config, task, size, batch_size)
    elif size:
        raise UsageError("--size is for gq params tdmpc2", hint="gq params 0.6b, or gq params tdmpc2 --size 5")
    elif device:
        from gq.cli.predicting import show_predictions

        task, num_transitions = data_facts(dataset, task)
        show_predictions(output, model, config, task, num_transitions, batch_size, device, world_size or 1)
    else:
        task, num_transitions = data_facts(dataset, task)
        show_transformers(output, model, config, task, num_transitions, batch_size or 64)


def refuse_numbers(batch_size: int | None, device: str | None, world_size: int | None) -> None:
    """Raise UsageError for a number that is none, or of devices that are not named."""
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"--batch-size {batch_size} is not a positive number", hint="for example --batch-size 64")
    if world_size is not None and (world_size < 1 or device is None):
        raise UsageError("--world-size says how many devices", hint="for example --device h100 --world-size 8")


def data_facts(dataset: str | None, task: str | None) -> tuple[str | None, int | None]:
    """Return the task, a dataset's where none is given, and how many transitions it has; None without one."""
    if not dataset:
        return task, None
    from gq.datasets.loading import load_dataset

    trajectories = load_dataset(dataset, task=task)
    return task or trajectories.task, trajectories.num_transitions


def show_transformers(
    output: Output, model: str | None, config: Any, task: str | None, num_transitions: int | None, batch_size: int
) -> None:
    """Print what Decision Transformers cost."""
    reports, on_task = collect(model, config, task, num_transitions, batch_size)
    document = {"task": on_task, "models": [dataclasses.asdict(report) for report in reports]}
    too_large = [report for report in reports if report.warning]
    if len(too_large) == 1:
        output.warn(too_large[0].warning)
    elif too_large:
        names = ", ".join(report.size for report in too_large)
        output.warn(f"less than a tenth of a token of data per parameter: {names} can learn the data by heart")
    counts = "\n".join(str(report.parameters) for report in reports)
    output.result(document, quiet=counts, human=tables(output, reports, on_task))


def collect(
    size: str | None, config: Any, task: str | None, num_transitions: int | None, batch_size: int
) -> tuple[list["ParamsReport"], str]:
    """Return the reports asked for, of a run's configuration or of one size or all, and the task that they are for."""
    from gq.costs import report, report_config
    from gq.envs.tasks import resolve_task
    from gq.models.sizes import SIZES

    options: dict[str, Any] = {"num_transitions": num_transitions, "batch_size": batch_size}
    if config is None:
        task = resolve_task(task or "Humanoid-v5").id
        return [report(one, task=task, **options) for one in ([size] if size else SIZES)], task
    interface = resolve_task(task or config.task)
    dims = {"observation_dim": interface.observation_dim, "action_dim": interface.action_dim}
    return [report_config(config.model, size=config.size, **dims, **options)], interface.id


def run_config(name: str) -> Any:
    """Return the configuration of a run that is a Decision Transformer or a TD-MPC2 agent.

    Raises:
        UsageError: no such run.
    """
    from gq.errors import suggest
    from gq.models.sizes import SIZES
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
    if config.algo == "bc":
        raise UsageError(f"{folder.name} is a {config.algo} run", hint="gq params knows transformers and world models")
    return config


def show_world_models(
    output: Output, config: "TDMPC2Config | None", task: str | None, size: str | None, batch_size: int | None
) -> None:
    """Print what the agent of a run costs, or without one those of one size or of all."""
    from dataclasses import replace

    from gq.cli.world_tables import world_tables
    from gq.costs import report_world
    from gq.envs.tasks import resolve_task
    from gq.models.world_config import WORLD_MODEL_SIZES
    from gq.presets import tdmpc2

    if config and size:
        raise UsageError("--size does not go with a run, which has its own", hint="gq params tdmpc2 --size 5")
    found = resolve_task(task or (config.task if config else "dog-run"))
    configs = [config] if config else [tdmpc2(name) for name in ([size] if size else WORLD_MODEL_SIZES)]
    reports = [report_world(replace(one, task=found.id), batch_size=batch_size) for one in configs]
    document = {
        "task": found.id,
        "observation_dim": found.observation_dim,
        "action_dim": found.action_dim,
        "models": [dataclasses.asdict(report) for report in reports],
    }
    counts = "\n".join(str(report.parameters) for report in reports)
    output.result(document, quiet=counts, human=world_tables(output, reports, found))


def tables(output: Output, reports: list["ParamsReport"], task: str) -> Any:
    """Return the counts and the costs as two tables, with what differs from the published count."""
    from rich.console import Group

    counts, costs = [], []
    for r in reports:
        published = f"{r.parameters_published:,}" if r.parameters_published else "-"
        agrees = "=" if r.parameters == r.parameters_formula else "differs from"
        counts.append((r.size, f"{r.parameters:,}", f"{agrees} {r.parameters_formula:,}", published))
        ratio = "-" if r.tokens_per_parameter is None else f"{r.tokens_per_parameter:.3g}"
        costs.append(
            (
                r.size,
                f"{r.flops_per_token / 1e6:,.1f} M",
                f"{r.training_flops_per_token / 1e6:,.1f} M",
                f"{r.training_memory_bytes / 2**30:.2f} GiB",
                f"{r.kv_cache_bytes / 2**20:.2f} MiB",
                ratio,
            )
        )
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

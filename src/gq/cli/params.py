"""`gq params`."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gq.cli import options
from gq.cli.output import Output

if TYPE_CHECKING:
    from gq.parameters import ParamsReport

EXAMPLES = """\b
Examples:
  gq params                              every size
  gq params 0.6b --dataset humanoid      with tokens per parameter
  gq params runs/a --json"""


def params(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="SIZE|RUN",
            help="Default: all sizes.",
            autocompletion=options.complete_from(options.known_sizes, options.known_runs),
        ),
    ] = None,
    latest: options.Latest = False,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Gymnasium task; default: the dataset's or run's, else Humanoid-v5.",
            autocompletion=options.complete_from(options.known_tasks),
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
    batch_size: Annotated[int, typer.Option(metavar="N", help="Windows computed at once, for the memory.")] = 64,
    json_mode: options.JsonMode = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    no_color: options.NoColor = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Report what a model costs: parameters (formula and count), FLOPs, memory, tokens per parameter."""
    output = Output(json_mode=json_mode, quiet=quiet, verbose=verbose, no_color=no_color, no_progress=no_progress)
    if model is None and latest:
        from gq.paths import find_run

        model = str(find_run(None, latest=True)[0])
    reports, on_task = collect(model, task, dataset, batch_size)
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
    model: str | None, task: str | None, dataset: str | None, batch_size: int
) -> tuple[list["ParamsReport"], str]:
    """Return the reports asked for, and the task that they are for."""
    from gq.envs.tasks import resolve_task
    from gq.errors import UsageError
    from gq.models.sizes import SIZES
    from gq.parameters import report, report_config

    if batch_size < 1:
        raise UsageError(f"--batch-size {batch_size} is not a positive number", hint="for example --batch-size 64")
    num_transitions: int | None = None
    if dataset:
        from gq.data.datasets import load_dataset

        trajectories = load_dataset(dataset, task=task)
        task, num_transitions = task or trajectories.task, trajectories.num_transitions
    options: dict[str, Any] = {"num_transitions": num_transitions, "batch_size": batch_size}
    if model is None or model in SIZES:
        task = resolve_task(task or "Humanoid-v5").id
        return [report(size, task=task, **options) for size in ([model] if model else SIZES)], task
    config = run_config(model)
    interface = resolve_task(task or config.task)
    dims = {"observation_dim": interface.observation_dim, "action_dim": interface.action_dim}
    return [report_config(config.model, size=config.size, **dims, **options)], interface.id


def run_config(name: str) -> Any:
    """Return the configuration of a run that is a Decision Transformer.

    Raises:
        UsageError: neither a size nor such a run.
    """
    from gq.engine.runs import read_config
    from gq.errors import GqError, UsageError, suggest
    from gq.models.sizes import SIZES
    from gq.paths import find_run

    try:
        folder, _ = find_run(name)
    except GqError as error:
        hint = suggest(name, SIZES) or error.hint
        raise UsageError(f"{name} is neither a size ({', '.join(SIZES)}) nor a run", hint=hint) from None
    config = read_config(folder)
    if config.algo == "bc":
        raise UsageError(f"{folder.name} is a {config.algo} run", hint="gq params knows Decision Transformers")
    return config


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

"""`gq collect`."""

from pathlib import Path
from typing import Annotated

import typer

from gq.cli import options
from gq.cli.output import Output

EXAMPLES = """\b
Examples:
  gq collect --latest -o data.hdf5 --episodes 200 --target 1800,3600
  gq collect cartpole-swingup-tdmpc2 -o planned.hdf5 --episodes 50
  gq collect builtin/hopper/expert -o noisy.hdf5 --episodes 100 --noise 0.3
  gq train dt --dataset noisy.hdf5
The same command resumes after an interruption, and gives the same file."""


def known_sources() -> list[str]:
    """Return the ids in the runs folder and the built-in policies."""
    return options.known_runs() + [name for name in options.known_datasets() if name.startswith("builtin/")]


@options.grouped
def collect(
    output_file: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The HDF5 file to write.", show_default=False)
    ],
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="A run's id, a unique prefix, a path to it, or a built-in policy: builtin/hopper/expert.",
            autocompletion=options.complete_from(known_sources),
        ),
    ] = None,
    latest: options.Latest = False,
    episodes: Annotated[int | None, typer.Option(metavar="N", help="How many; default: 100.")] = None,
    transitions: Annotated[
        int | None, typer.Option(metavar="N", help="Instead of --episodes; the last episode may go beyond.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Target returns, taken in turn; default: the run's highest.")
    ] = None,
    mode: options.ActingMode = None,
    noise: Annotated[
        float | None,
        typer.Option(
            metavar="SIGMA",
            help="Gaussian action noise in half action ranges, clipped; default: 0, or the built-in policy's own.",
        ),
    ] = None,
    random_share: Annotated[
        float, typer.Option(metavar="P", help="Share of the steps that take a uniformly random action.")
    ] = 0.0,
    checkpoint: options.CheckpointName = "best",
    seed: Annotated[int, typer.Option(metavar="N", help="Episode i draws its start and noise from (SEED, i).")] = 0,
    num_envs: Annotated[
        int, typer.Option(metavar="N", help="Environments at a time; the data do not depend on it.")
    ] = 16,
    device: options.Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace FILE, and what was begun of it.")] = False,
    *,
    output: Output,
) -> None:
    """Roll a run or a built-in policy into a dataset, and print the file's path."""
    from gq.paths import find_run

    source: str | Path
    if run and run.startswith("builtin/"):
        source, checkpoint_folder = run, None
    else:
        source, checkpoint_folder = find_run(run, latest=latest)
    targets = options.parse_numbers(target, "--target")
    from gq import threads

    threads.prepare()
    from gq.collecting import CollectionRequest
    from gq.collecting import collect as collect_data
    from gq.policies.loading import Acting

    wanted = CollectionRequest(
        num_episodes=episodes,
        num_transitions=transitions,
        targets=targets,
        noise=noise,
        random_share=random_share,
        seed=seed,
        num_envs=num_envs,
    )

    with output.progress("collecting", unit="steps") as move:
        collected = collect_data(
            source,
            output_file,
            wanted,
            Acting(checkpoint=checkpoint_folder or checkpoint, mode=mode, device=device or "auto"),
            force=force,
            note=output.note,
            progress=move,
        )
    output.note(
        f"{collected.policy}: {collected.transitions:,} transitions, {collected.episodes:,} episodes, "
        f"return {collected.return_mean:.0f} ± {collected.return_std:.0f}"
    )
    output.result(collected.to_dict(), quiet=collected.file, human=str(collected.file))

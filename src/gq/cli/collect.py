"""`gq collect`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gq.cli import options
from gq.cli.output import Output

if TYPE_CHECKING:
    from gq.collecting import CollectionRequest

EXAMPLES = """\b
Examples:
  gq collect --latest -o data.hdf5 --episodes 200 --target 1800,3600
  gq collect cartpole-swingup-tdmpc2 -o planned.hdf5 --episodes 50
  gq collect builtin/hopper/expert -o noisy.hdf5 --episodes 100 --noise 0.3
  gq train dt --dataset noisy.hdf5
The same command resumes after an interruption, and gives the same file."""
RUN_HELP = "A run's id, a unique prefix, a path to it, or a built-in policy: builtin/hopper/expert."
ORDER = "output_file source episodes transitions target mode noise random_share checkpoint wanted device force output"


def known_sources() -> list[str]:
    """Return the ids in the runs folder and the built-in policies."""
    return options.known_runs() + [name for name in options.known_datasets() if name.startswith("builtin/")]


class Source(options.ChosenRun):
    """A run or a built-in policy, and how it acts."""

    def __init__(
        self,
        *,
        run: Annotated[str | None, options.completed("RUN", RUN_HELP, known_sources, kind=typer.Argument)] = None,
        latest: options.Latest = False,
        mode: options.ActingMode = None,
        checkpoint: options.CheckpointName = "best",
        device: options.Device = "auto",
        allow_module: options.AllowModule = "",
    ) -> None:
        self.builtin = run if run and run.startswith("builtin/") else None
        if self.builtin:
            self.given = {"checkpoint": checkpoint, "device": device or "auto"}
        else:
            super().__init__(run=run, latest=latest, checkpoint=checkpoint, device=device, allow_module=allow_module)
        self.given["mode"] = mode


@dataclass(frozen=True)
class Wanted:
    """How many episodes, with which targets, starts and noise."""

    episodes: Annotated[int | None, options.number("How many; default: 100.")] = None
    transitions: Annotated[int | None, options.number("Instead of --episodes; the last episode may go beyond.")] = None
    target: Annotated[str | None, options.targets("Target returns, taken in turn; default: the run's highest.")] = None
    noise: Annotated[
        float | None,
        typer.Option(
            metavar="SIGMA",
            help="Gaussian action noise in half action ranges, clipped; default: 0, or the built-in policy's own.",
        ),
    ] = None
    random_share: Annotated[
        float, typer.Option(metavar="P", help="Share of the steps that take a uniformly random action.")
    ] = 0.0
    seed: Annotated[int, options.number("Episode i draws its start and noise from (SEED, i).")] = 0
    num_envs: Annotated[int, options.number("Environments at a time; the data do not depend on it.")] = 16

    def request(self) -> "CollectionRequest":
        """Return these as a value; this loads torch. Raises UsageError."""
        targets = options.parse_numbers(self.target, "--target")
        from gq.collecting import CollectionRequest

        return CollectionRequest(
            num_episodes=self.episodes,
            num_transitions=self.transitions,
            targets=targets,
            noise=self.noise,
            random_share=self.random_share,
            seed=self.seed,
            num_envs=self.num_envs,
        )


@options.grouped_as(ORDER)
def collect(
    output_file: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The HDF5 file to write.", show_default=False)
    ],
    *,
    source: Source,
    wanted: Wanted,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE, and what was begun of it.")] = False,
    output: Output,
) -> None:
    """Roll a run or a built-in policy into a dataset, and print the file's path."""
    from gq import threads

    threads.prepare()
    request = wanted.request()
    from gq.collecting import collect as collect_data

    with output.progress("collecting", unit="steps") as move:
        collected = collect_data(
            source.builtin or source.folder,
            output_file,
            request,
            source.acting(),
            force=force,
            note=output.note,
            progress=move,
        )
    output.note(
        f"{collected.policy}: {collected.transitions:,} transitions, {collected.episodes:,} episodes, "
        f"return {collected.return_mean:.0f} ± {collected.return_std:.0f}"
    )
    output.result(collected.to_dict(), quiet=collected.file, human=str(collected.file))

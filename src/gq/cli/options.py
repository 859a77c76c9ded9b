"""Options that several commands share, and what their completion offers."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gq.errors import UsageError
from gq.files import parse_whole_number

if TYPE_CHECKING:
    from gq.policies.loading import Acting
    from gq.rollouts.episodes import EpisodeRequest


def grouped(command: Callable[..., None], order: str = "") -> Callable[..., None]:
    """Let each parameter that a class annotates, such as `output: Output`, stand for the options of its constructor.

    Args:
        order: of options in the help, by name; a group's name stands for those of its options that are not named.
    """
    parameters = inspect.signature(command, eval_str=True).parameters
    groups = {one.name: one.annotation for one in parameters.values() if inspect.isclass(one.annotation)}
    options = {name: inspect.signature(group, eval_str=True).parameters for name, group in groups.items()}

    @functools.wraps(command)
    def run(**values: Any) -> None:
        # The last comes first: it is the output, and says whether the errors of others have tracebacks.
        last_first = reversed(groups.items())
        made = {name: group(**{key: values.pop(key) for key in options[name]}) for name, group in last_first}
        command(**values, **made)

    every = {key: one for name, each in parameters.items() for key, one in options.get(name, {name: each}).items()}
    wanted = order.split() or list(parameters)
    apart = set(wanted) - set(groups)  # options that have a place of their own
    rest = {name: [key for key in each if key not in apart] for name, each in options.items()}
    names = [key for name in wanted for key in rest.get(name, [name])]
    assert sorted(names) == sorted(every), set(names) ^ set(every)
    flat = [every[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in names]
    run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]  # what Typer reads
    run.__annotations__ = {one.name: one.annotation for one in flat}
    return run


def grouped_as(order: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return `grouped` with an order of the options."""
    return functools.partial(grouped, order=order)


def completed(metavar: str, text: str, *sources: Callable[[], list[str]], kind: Any = typer.Option, **more: Any) -> Any:
    """An option, or an argument, whose values are completed from the sources; `text` is its help."""

    def complete(incomplete: str) -> list[str]:
        return [candidate for source in sources for candidate in source() if candidate.startswith(incomplete)]

    return kind(metavar=metavar, help=text, autocompletion=complete, **more)


def known_runs() -> list[str]:
    """Return the ids in the runs folder."""
    from gq.paths import all_runs

    return [run.name for run in all_runs()]


def known_datasets() -> list[str]:
    """Return the ids of the registry."""
    from gq.datasets.names import known_ids

    return list(known_ids())


def known_sizes() -> list[str]:
    """Return the model sizes."""
    from gq.models.config import SIZES

    return list(SIZES)


def known_tasks() -> list[str]:
    """Return the ids of Gymnasium's tasks."""
    from gq.envs.tasks import TASKS

    return list(TASKS)


def known_control_tasks() -> list[str]:
    """Return the names of DeepMind Control's tasks."""
    from gq.envs.tasks import CONTROL_TASKS

    return list(CONTROL_TASKS)


def known_world_model_sizes() -> list[str]:
    """Return the sizes of world models."""
    from gq.models.world_config import WORLD_MODEL_SIZES

    return list(WORLD_MODEL_SIZES)


def known_devices() -> list[str]:
    """Return the devices that figures are known of."""
    from gq.devices import known_devices

    return known_devices()


def known_modes() -> list[str]:
    """Return the names of ways to execute plans; others can be put together like these."""
    from gq.planning.modes import MODES

    return [*MODES, "sweep"]


def parse_numbers(text: str | None, option: str) -> list[float]:
    """Parse `1800,3600`; None gives an empty list. Raises UsageError."""
    if text is None:
        return []
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(abs(number) < float("inf") for number in numbers):
        raise UsageError(f"{option} {text} is not a list of numbers", hint=f"for example {option} 1800,3600")
    return numbers


def parse_size(text: str) -> tuple[int, int]:
    """Parse `640x480`. Raises UsageError."""
    width, _, height = text.lower().partition("x")
    columns, rows = parse_whole_number(width), parse_whole_number(height)
    if columns is None or rows is None:
        raise UsageError(f"--size {text} is not a size in pixels", hint="for example --size 640x480")
    return columns, rows


def max_steps(run: Path) -> int:
    """Return the most steps that an episode of a run's task can have, for progress bars."""
    from gq.runs.folder import read_config

    return read_config(run).environment.max_episode_steps


RunName = Annotated[
    str | None,
    completed(
        "RUN",
        "A run's id, a unique prefix of one, or a path to a run or a checkpoint in it.",
        known_runs,
        kind=typer.Argument,
    ),
]
RUNS = completed("RUN...", "Ids of runs, unique prefixes of them, or paths.", known_runs, kind=typer.Argument)
Latest = Annotated[bool, typer.Option("--latest", help="Take the newest run.")]
Dataset = Annotated[
    str | None, completed("ID|PATH", "Dataset id or file; default: the one downloaded last.", known_datasets)
]
TaskName = Annotated[
    str | None,
    completed("ID", "Gymnasium id, or package.module:Id-v0 to import one; default: the dataset's.", known_tasks),
]
Size = Annotated[str | None, completed("SIZE", "1m, 13m, 0.1b, 0.6b or 1.9b; default: 1m.", known_sizes)]
Device = Annotated[
    str | None,
    completed("D", "auto, cpu, cuda or cuda:N; auto takes the GPU if there is one.", lambda: ["auto", "cpu", "cuda"]),
]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Force = Annotated[bool, typer.Option("--force", help="Replace FILE.")]
CheckpointName = Annotated[str, completed("NAME", "best, last or a step.", lambda: ["best", "last"])]
Stochastic = Annotated[
    bool,
    typer.Option("--stochastic", help="Sample an Online Decision Transformer's actions, or TD-MPC2's elites."),
]
ActingMode = Annotated[
    str | None,
    completed(
        "MODE",
        "How TD-MPC2 acts: plan, policy for its policy network alone, or as gq eval --mode; default: plan.",
        known_modes,
    ),
]
CorrectorName = Annotated[
    str | None,
    typer.Option(metavar="NAME|PATH", help="What corrects plans, by gq distill; default: the run's."),
]

AllowModule = Annotated[
    str, typer.Option(metavar="NAME", help="The module that the environment of a pulled run may import.")
]


def number(text: str, **more: Any) -> Any:
    """The option of a number; `text` is its help."""
    return typer.Option(metavar="N", help=text, **more)


def targets(text: str) -> Any:
    """The option of target returns; `text` is its help."""
    return typer.Option(metavar="A,B,C", help=text)


@dataclass(frozen=True)
class Episodes:
    """Which episodes are wanted, by default those of `gq eval`."""

    target: Annotated[str | None, targets("Target returns; default: those of the run.")] = None
    episodes: Annotated[int | None, number("Episodes per target or mode.")] = 20
    seed: Annotated[int, number("Episode i has seed SEED + i.")] = 0

    def request(self) -> "EpisodeRequest":
        """Return the options as a value. Raises UsageError."""
        targets = parse_numbers(self.target, "--target")
        from gq.rollouts.episodes import EpisodeRequest

        return EpisodeRequest(self.episodes, targets, self.seed)


@dataclass(frozen=True)
class Environment:
    """How the environment is made; what is not given is as the data record it."""

    env_kwargs: Annotated[
        str | None, typer.Option(metavar="JSON", help="Arguments of its constructor, such as '{\"frame_skip\": 2}'.")
    ] = None
    max_episode_steps: Annotated[int | None, number("Its time limit; default: its own.")] = None
    ignore_env_spec: Annotated[
        bool, typer.Option("--ignore-env-spec", help="Take the data for the plain environment, whatever they record.")
    ] = False

    def flags(self) -> dict[str, Any]:
        """Return these by configuration key. Raises UsageError for what is no JSON object."""
        kwargs = None
        if self.env_kwargs is not None:
            from gq.files import parse_json

            try:
                kwargs = parse_json(self.env_kwargs)
            except ValueError:
                kwargs = None
            if not isinstance(kwargs, dict) or None in kwargs.values():
                hint = """for example --env-kwargs '{"forward_reward_weight": 2}'"""
                raise UsageError(f"--env-kwargs {self.env_kwargs} is not a JSON object of values", hint=hint)
        return {
            "environment.kwargs": kwargs,
            "environment.max_episode_steps": self.max_episode_steps,
            "environment.ignore_env_spec": self.ignore_env_spec or None,
        }


class ChosenRun:
    """A run, and which of its checkpoints acts where; its arguments are options."""

    def __init__(
        self,
        *,
        run: RunName = None,
        latest: Latest = False,
        checkpoint: CheckpointName = "best",
        device: Device = "auto",
        allow_module: AllowModule = "",
    ) -> None:
        from gq.paths import find_run

        self.folder, named = find_run(run, latest=latest)
        self.given: dict[str, Any] = {"checkpoint": named or checkpoint, "device": device or "auto"}
        self.given["allow_module"] = allow_module

    def acting(self, **more: Any) -> "Acting":
        """Return the options as a value, with fields that a command adds; this loads torch."""
        from gq.policies.loading import Acting

        return Acting(**self.given, **more)


class ActingRun(ChosenRun):
    """A run, and how else than by default it acts; its arguments are options."""

    def __init__(
        self,
        *,
        run: RunName = None,
        latest: Latest = False,
        checkpoint: CheckpointName = "best",
        corrector: CorrectorName = None,
        stochastic: Stochastic = False,
        device: Device = "auto",
        allow_module: AllowModule = "",
    ) -> None:
        super().__init__(run=run, latest=latest, checkpoint=checkpoint, device=device, allow_module=allow_module)
        self.given |= {"corrector": corrector, "stochastic": stochastic}


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise UsageError if there is a file that --force would replace."""
    if path.exists() and not force:
        raise UsageError(f"{path} is there already", hint="--force replaces it")

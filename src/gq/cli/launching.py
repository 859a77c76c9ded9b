"""What all commands that train share: where a run goes, what it is set to, and how it begins and ends."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gq.cli import options
from gq.cli.output import Output
from gq.errors import UsageError

if TYPE_CHECKING:
    from gq.config import RunConfig, TrainedConfig

Out = Annotated[Path | None, typer.Option(metavar="DIR", help="The run's folder; default: a new one in the cache.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Continue the run in --out, or begin it there; alone: the newest unfinished one."),
]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="Its name among the runs, instead of a new one.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", metavar="WORD", help="A tag; may be repeated.")]
Note = Annotated[str | None, typer.Option(metavar="TEXT", help="What the run is for.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="TOML with the keys of config.toml.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of config.toml; may be repeated.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")]


@dataclasses.dataclass(frozen=True)
class Launch:
    """The options that all commands that train have."""

    device: options.Device = None
    out: Out = None
    resume: Resume = False
    name: Name = None
    tags: Tags = None
    note: Note = None
    config: ConfigFile = None
    settings: Settings = None
    dry_run: DryRun = False

    @property
    def folder(self) -> Path | None:
        """The run's folder: --out, or --name in the runs folder. Raises UsageError."""
        if self.name is None:
            return self.out
        from gq.paths import runs_folder

        if self.out:
            raise UsageError("--out and --name both say where the run goes", hint="give one of them")
        if not self.name or self.name.startswith((".", "-")) or self.name != Path(self.name).name:
            raise UsageError(f"{self.name!r} cannot be the name of a run", hint="for example --name hopper-best")
        return runs_folder() / self.name

    @property
    def continues(self) -> bool:
        """Whether a run is resumed; --resume with a folder that holds nothing yet begins a run there."""
        if not self.resume:
            return False
        from gq.runs.folder import is_blank

        return not (self.folder and is_blank(self.folder))

    def given(self, flags: dict[str, Any]) -> dict[str, Any]:
        """Return what was given, by dotted key: of --config, --set and flags, each before the one ahead of it.

        Args:
            flags: by dotted key; None was not given.
        """
        from gq.settings import flatten, parse_settings, read_config_file

        in_file = flatten(read_config_file(self.config)) if self.config else {}
        in_file.pop("algo", None)
        about = {"log.tags": self.tags or None, "log.note": self.note}
        flags = {**flags, "train.device": self.device, **about}
        stated = {key: value for key, value in flags.items() if value is not None}
        return in_file | parse_settings(self.settings or []) | stated

    def stored(
        self, output: Output, algo: str, size: str | None, given: dict[str, Any]
    ) -> "tuple[Path, RunConfig] | None":
        """Return the run to resume and its configuration; None for a new one."""
        if not self.continues:
            if self.resume:
                output.note(f"{self.folder} has nothing saved yet: beginning a run there")
            return None
        return resumed(algo, size, given, self.folder)


def resumed(algo: str, size: str | None, given: dict[str, Any], out: Path | None) -> "tuple[Path, TrainedConfig]":
    """Return the run to resume and its configuration, with what was given merged in."""
    from gq.datasets.loading import canonical_name
    from gq.runs.folder import resume_config

    if "data.dataset" in given:
        given = given | {"data.dataset": canonical_name(given["data.dataset"])}
    return resume_config(algo, size, given, out)


def show_plan(output: Output, config: "RunConfig", out: Path | None, **facts: Any) -> None:
    """Print what a run would be: the whole configuration, and what follows from it.

    Args:
        out: its folder; None: the one that it would get.
    """
    from gq.config import to_toml
    from gq.paths import new_run_folder

    out = out or new_run_folder(config.task, config.algo, config.size)
    output.note(f"run: {out}")
    output.result({"run": str(out), "config": config.to_dict(), **facts}, quiet=out, human=to_toml(config).rstrip())


def result_table(output: Output, result: Any, names: Sequence[str], *, headings: tuple[str, str]) -> Any:
    """Return what the last evaluation of a training found, with the run's path under it.

    Args:
        names: of the ways in which the policy acted.
        headings: what these are, and what lengths count.
    """
    from rich.console import Group

    if not result.evaluation:
        return str(result.run)
    rows = [
        (name, f"{s.return_mean:.0f} ± {s.return_std:.0f}", f"{s.length_mean:.0f}", str(s.num_episodes))
        for name, s in zip(names, result.evaluation, strict=True)
    ]
    return Group(output.table([headings[0], "return", headings[1], "episodes"], rows), str(result.run))


def show_result(output: Output, result: Any, human: Any, *, more: str = "") -> None:
    """Print a training's result, a dataclass with its `run`, and what to do with that.

    Args:
        more: a command besides `gq eval`.
    """
    from gq.paths import runs_folder

    output.result({**dataclasses.asdict(result), "run": str(result.run)}, quiet=result.run, human=human)
    name = "--latest" if result.run.parent == runs_folder() else shlex.quote(str(result.run))
    output.note(f"next: gq eval {name}" + (f", or {more} {name}" if more else ""))

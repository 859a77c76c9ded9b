"""What the pages say is true: commands exist and run, links lead somewhere, the reference is what gq itself prints."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer.main

from commandline import child_environment
from gq.cli import app
from gq.envs import gl
from gq.errors import GqError
from test_import_graph import FLOORS
from tiny import as_flags

ROOT = Path(__file__).parents[1]
README, TUTORIAL = ROOT / "README.md", ROOT / "docs" / "tutorial.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
MODEL = as_flags({"model.embed_dim": 16, "model.num_heads": 2, "model.num_kv_heads": 2, "model.num_layers": 1})
EVALUATION = {"eval.every": 6, "eval.num_episodes": 1, "eval.targets": [300]}
TRAINING = [*as_flags({**EVALUATION, "train.log_every": 2}), "--steps", "12"]
# What the test adds to commands, so that they take seconds; the last of two equal options counts.
SMALLER = {
    "download builtin/": ["--transitions", "2500"],
    "train dt": [*TRAINING, *MODEL],
    "train bc": TRAINING,
    "train odt": [*TRAINING, *MODEL],
    "finetune": ["--iterations", "1", "--rollouts", "1", "--updates", "1", *as_flags({"online.final_episodes": 1})],
    "train tdmpc2": [
        *("--decisions", "520"),
        *as_flags({"model.encoder_dim": 16, "model.mlp_dim": 32, "model.latent_dim": 16, "planner.iterations": 2}),
        *as_flags({"planner.num_samples": 16, "planner.num_policy_samples": 4, "planner.num_elites": 4}),
        *as_flags({"train.seed_decisions": 500, "train.updates_per_decision": 0.05, "eval.every": 0}),
    ],
    "distill": ["--episodes", "2", "--rounds", "0", "--set", "train.num_epochs=1"],
    "eval runs/cartpole": ["--episodes", "1"],
    "eval": ["--episodes", "2"],
    "report": ["--episodes", "5"],
    "compare": ["--episodes", "2"],
    "collect": ["--episodes", "3"],
    "render": ["--size", "64x64", "--episodes", "1"],
}


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    is_run: bool  # False for `sh no-run`: needs a GPU, a network, a person or hours
    code: str


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page in their order."""
    for info, code in re.findall(r"^```(\S[^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        language, *words = info.split()
        assert words in ([], ["no-run"]), info
        yield Block(language, not words, code)


def command_lines(text: str) -> list[list[str]]:
    """Return the words of every gq command in the shell blocks of a page."""
    code = "\n".join(block.code for block in blocks(text) if block.language == "sh").replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in code.splitlines()]
    return [words[words.index("gq") + 1 :] for words in lines if "gq" in words]


def problem(words: list[str]) -> str:
    """Return what is wrong with a command's names and options, or nothing."""
    command, names = typer.main.get_command(app), list(words)
    while names and names[0] in getattr(command, "commands", {}):
        command = command.commands[names.pop(0)]
    is_left_out = bool(names) and (names[0].startswith("-") or "." in names[0])  # gq runs --sweep X, gq sweep FILE.toml
    if is_left_out and (default := getattr(command, "default", "")):
        command = command.commands[default]
    if hasattr(command, "commands"):
        is_whole = command.invoke_without_command and all(word.startswith("-") for word in names)
        return "" if is_whole else "no such command"
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in names if word.startswith("-") and word.split("=")[0] not in options | {"--help"}]
    return f"no option {unknown[0]}" if unknown else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_and_options_of_a_page_exist(page: Path) -> None:
    lines = command_lines(page.read_text(encoding="utf-8"))
    assert [(words, problem(words)) for words in lines if problem(words)] == []
    assert len(lines) >= {"README.md": 40, "tutorial.md": 25}.get(page.name, 0)


def test_a_wrong_command_would_be_found() -> None:
    assert command_lines("```sh\ngq eval --latest  # why\n# gq no\n```\n```text\ngq x\n```\n") == [["eval", "--latest"]]
    assert problem(["trian", "dt"]) == "no such command"
    assert problem(["train", "dt", "--stpes", "3"]) == "no option --stpes"
    assert problem(["train", "dt", "--steps=3"]) == problem(["runs", "list"]) == problem(["--version"]) == ""


def anchors(text: str) -> set[str]:
    """Return the names by which GitHub links to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)\s]*)\)", text):
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target


def test_the_reference_of_the_commands_is_current() -> None:
    spec = importlib.util.spec_from_file_location("write_commands", ROOT / "scripts" / "write_commands.py")
    assert spec
    assert spec.loader
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    assert writer.FILE.read_text(encoding="utf-8") == writer.page(), "docs/commands.md is out of date: make commands"


def test_the_architecture_page_has_the_rooms() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    floors = re.findall(r"^\| \d+ \| (.*) \|$", text, re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", rooms)) for rooms in reversed(floors)] == FLOORS


def test_the_architecture_page_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text[text.index("### The front house") : text.index("## The way of one batch")]
    words = set(re.findall(r"[a-z0-9_]+", section))
    modules = {path.stem for path in (ROOT / "src/gq").rglob("*.py") if path.parent.name != "cli"}
    assert modules - words - {"__init__", "__main__"} == set()


# Running what the pages say


def gq_script() -> str:
    """Return a `gq` for PATH that makes commands small."""
    cases = [f'  "{words}"*) set -- "$@" {shlex.join(options)} ;;' for words, options in SMALLER.items()]
    choice = ['case "$*" in', "  *--help*|*--list*|*--dry-run*) ;;", *cases, "esac"]
    return "\n".join(["#!/bin/sh", *choice, f'exec "{sys.executable}" -m gq "$@"', ""])


def run_page(page: Path, folder: Path, languages: tuple[str, ...] = ("sh", "python")) -> None:
    """Run the blocks of a page in their order, in an empty folder."""
    try:
        gl.select_backend()
    except GqError as error:
        pytest.skip(f"the pages film: {error}")
    tools, work = folder / "bin", folder / "work"
    tools.mkdir()
    work.mkdir()
    (tools / "gq").write_text(gq_script())
    (tools / "gq").chmod(0o755)
    environment = child_environment(PATH=f"{tools}{os.pathsep}{os.environ['PATH']}", MUJOCO_GL="", OMP_NUM_THREADS="1")
    for block in blocks(page.read_text(encoding="utf-8")):
        if not block.is_run or block.language not in languages:
            continue
        command = ["bash", "-e", "-c", block.code] if block.language == "sh" else [sys.executable, "-c", block.code]
        result = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{block.code}\n{result.stdout[-1000:]}\n{result.stderr[-3000:]}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", [README, TUTORIAL], ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path, ("sh",) if page == README else ("sh", "python"))  # test_readme.py runs README's Python


@pytest.mark.slow
def test_a_block_that_fails_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\ngq --version\n```\n\n```sh no-run\nfalse\n```\n\n```sh\ngq train dt --size 9b\n```\n")
    with pytest.raises(AssertionError, match="there is no size 9b"):
        run_page(page, tmp_path)


def test_each_key_on_the_page_of_settings_exists() -> None:
    from gq.config import CONFIGS
    from gq.settings import flatten

    known = {key for kind in CONFIGS.values() for key in flatten(kind().to_dict())}
    words = re.findall(r"`(?:--set )?((?:train|model|update|planner|optim|online|data|eval)\.[a-z_]+)", settings_page())
    assert len(words) > 20
    assert set(words) <= known


def test_the_page_of_settings_says_what_the_presets_of_tdmpc2_are() -> None:
    from gq.presets import tdmpc2
    from gq.settings import flatten

    control, others = (flatten(tdmpc2("5", task).to_dict()) for task in ("dog-run", "HalfCheetah-v5"))
    first_table = settings_page().split("Named alternatives")[0]
    rows = [line.split("|") for line in first_table.splitlines() if line.startswith("| ")]
    told = {row[4].split("`")[1]: row[2:4] for row in rows if "`" in row[4]}
    differing = {key for key in control if control[key] != others[key]} - {"task"}
    assert differing == told.keys()
    for key in ("update.temporal_decay", "train.discount_max"):
        assert [cell.split()[-1] for cell in told[key]] == [str(control[key]), str(others[key])]


def settings_page() -> str:
    return (ROOT / "docs" / "settings.md").read_text()

"""What the README says is true: its example runs, its file map is the source tree. test_docs.py has its commands."""

import re
from pathlib import Path

import pytest

from commandline import gq
from gq.cli import params

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example
    code = example[1]
    for whole, small in {
        '"builtin/hopper/medium")': '"builtin/hopper/medium", num_transitions=2000)',
        '"train.steps": 2000': '"train.steps": 4, "eval.num_episodes": 1',
        "EpisodeRequest(20,": "EpisodeRequest(2,",
        "targets=[3000]))": "targets=[3000]), video=gq.VideoOptions(width=64, height=64))",
    }.items():
        assert whole in code
        code = code.replace(whole, small)
    exec(compile(code, "README.md", "exec"), {})
    *_, path = capsys.readouterr().out.split("\n")[:-1]
    assert path.endswith(".mp4")
    assert Path(path).stat().st_size > 1000


def test_costs_of_models_are_what_the_program_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    hopper = ("Hopper-v5", 100_430)  # of the built-in dataset, which would have to be simulated
    monkeypatch.setattr(params, "data_facts", lambda dataset, task: hopper if dataset else (task, None))
    samples = re.findall(r"```sh\n(gq params [^\n]*)\n```\n\n```text\n(.*?)```", README, re.DOTALL)
    assert len(samples) == 3
    for command, shown in samples:
        result = gq(*command.split()[1:])
        printed = " ".join(f"{result.stdout} {result.stderr}".split())
        for line in shown.splitlines():
            assert line == "..." or " ".join(line.split()) in printed, (command, line)


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)) <= targets

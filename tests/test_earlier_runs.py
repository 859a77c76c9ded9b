"""Runs and data made by the first version still open: they evaluate, render, resume and collect the same.

tests/data/earlier holds one tiny run of each algorithm, one of them with a corrector, and the data they learned from.
Each run has `expected_after_resuming.jsonl`: the lines that the version that made it added when it resumed it.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from commandline import document, gq
from gq.paths import read_settings

EARLIER = Path(__file__).parent / "data" / "earlier"
RUNS = ("dt", "bc", "odt", "finetune", "tdmpc2")
RECORDED = "/data/gq"  # where the runs lay when they were made; what their configurations say of data and parents
LONGER = {
    "dt": ("train", "dt", "train.steps=9"),
    "bc": ("train", "bc", "train.steps=9"),
    "odt": ("train", "odt", "train.steps=9"),
    "finetune": ("finetune", "online.iterations=3"),
    "tdmpc2": ("train", "tdmpc2", "train.decisions=70"),
}
pytestmark = [pytest.mark.computes, pytest.mark.usefixtures("one_thread", "fast_disk")]


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A copy that a test may change, whose runs know where it lies."""
    folder = Path(shutil.copytree(EARLIER, tmp_path / "earlier"))
    for config in folder.glob("*/config.toml"):
        config.write_text(config.read_text().replace(RECORDED, str(folder)))
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def recorded_evaluation(run: Path, num_results: int) -> dict[str, Any]:
    documents = (json.loads(file.read_text()) for file in sorted((run / "evals").iterdir()))
    return next(found for found in documents if len(found["results"]) == num_results)


@pytest.mark.parametrize("name", ["dt", "odt", "finetune"])
def test_an_earlier_run_evaluates_as_it_did(earlier: Path, name: str) -> None:
    expected = recorded_evaluation(EARLIER / name, 2)
    found = document("eval", earlier / name, "--episodes", "2")
    assert [row["target_return"] for row in found["results"]] == [row["target_return"] for row in expected["results"]]
    for row, before in zip(found["results"], expected["results"], strict=True):
        assert row["return_mean"] == pytest.approx(before["return_mean"], rel=1e-3, abs=1e-3)
        assert row["length_mean"] == before["length_mean"]


def test_an_earlier_planner_and_its_corrector_evaluate_as_they_did(earlier: Path) -> None:
    expected = recorded_evaluation(EARLIER / "tdmpc2", 3)
    found = document("eval", earlier / "tdmpc2", "--episodes", "5", "--mode", "plan,naive2,spec2")
    assert found["corrector"] == expected["corrector"] == "two-tower"
    for row, before in zip(found["results"], expected["results"], strict=True):
        assert row["mode"] == before["mode"]
        assert row["return_mean"] == pytest.approx(before["return_mean"], abs=0.5)  # 1 for each step that it stands
        assert row["planner_calls"] == pytest.approx(before["planner_calls"], rel=0.1)


@pytest.mark.parametrize("name", RUNS)
def test_an_earlier_run_resumes_as_it_did(earlier: Path, name: str) -> None:
    *command, longer = LONGER[name]
    before = lines(earlier / name / "metrics.jsonl")
    result = gq(*command, "--out", earlier / name, "--resume", "--set", longer, "-q")
    assert result.exit_code == 0, result.stderr
    found = lines(earlier / name / "metrics.jsonl")
    assert found[: len(before)] == before
    expected = lines(earlier / name / "expected_after_resuming.jsonl")
    assert [line.keys() for line in found[len(before) :]] == [line.keys() for line in expected]
    num = read_settings(earlier / name)["eval"]["num_episodes"]
    for line, recorded in zip(found[len(before) :], expected, strict=True):
        for key in recorded:  # standard deviations were with n then, and are with n - 1 now
            if key.endswith("return_std") and num > 1:
                recorded[key] *= math.sqrt(num / (num - 1))
        assert line == pytest.approx(recorded, rel=5e-3, abs=2e-2)


@pytest.mark.usefixtures("drawing")
@pytest.mark.parametrize("name", ["dt", "tdmpc2"])
def test_an_earlier_run_renders(earlier: Path, name: str, tmp_path: Path) -> None:
    result = gq("render", earlier / name, "--output", tmp_path / "video.mp4", "--size", "64x48", "-q")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "video.mp4").stat().st_size > 1000


def test_earlier_data_read_and_collect_the_same(earlier: Path, tmp_path: Path) -> None:
    import numpy as np

    from gq.data.reading import read_trajectories

    output = tmp_path / "collected.hdf5"
    result = gq("collect", earlier / "dt", "-o", output, "--episodes", "3", "-q")
    assert result.exit_code == 0, result.stderr
    found, expected = read_trajectories(output), read_trajectories(EARLIER / "collected.hdf5")
    assert found.lengths.tolist() == expected.lengths.tolist()
    np.testing.assert_allclose(found.rewards, expected.rewards, rtol=1e-3, atol=1e-3)


def test_earlier_runs_are_listed_reported_and_compared(earlier: Path, tmp_path: Path) -> None:
    result = gq("report", *(earlier / name for name in RUNS), "--output", tmp_path / "report.html", "-q")
    assert result.exit_code == 0, result.stderr
    page = (tmp_path / "report.html").read_text()
    assert all(name in page for name in RUNS)
    assert document("runs", "show", earlier / "dt")["name"] == "dt"

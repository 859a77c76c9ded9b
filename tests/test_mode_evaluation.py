"""Ways to execute plans, from the command line: measured, compared, filmed; what they need and refuse."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commandline import copy_run, gq
from gq import rendering
from gq.errors import GqError, UsageError
from gq.files import sha256
from gq.models.corrector import Corrector, CorrectorConfig
from gq.planning.acting import PlanningPolicy
from gq.planning.interfaces import Source
from gq.policies.correctors import correctors_folder, fitting_corrector, save_corrector
from gq.policies.loading import Acting, load_run
from gq.rendering import SOURCE_COLOURS, VideoOptions, render
from gq.results.behaviour import standard_modes
from gq.results.evaluate import LEFT_OUT, evaluate
from gq.rollouts.episodes import EpisodeRequest, Step
from gq.runs.evaluations import read_evaluations
from gq.video import draw_overlay
from test_world_runs import trained

pytestmark = [pytest.mark.computes, pytest.mark.usefixtures("one_thread")]

USAGE = 2
FIGURES = (
    *("mode", "return_mean", "retention", "planner_calls_per_step", "decision_ms_p50", "decision_ms_p95"),
    *("decision_ms_p99", "model_evaluations_per_step", "accepted_length_mean", "source_shares", "mismatch"),
)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An agent whose episodes last a few steps."""
    return trained(tmp_path_factory.mktemp("pendulum"), "InvertedPendulum-v5")


@pytest.fixture
def corrected(agent: Path, tmp_path: Path) -> Path:
    """A copy of it with a corrector that has learnt nothing, and so changes nothing."""
    run = copy_run(agent, tmp_path / "agent")
    add_corrector(run, "two-tower", sha256(load_run(run).checkpoint / "model.safetensors"))
    return run


def add_corrector(run: Path, name: str, teacher: str) -> None:
    config = CorrectorConfig(latent_dim=16, action_dim=1, hidden_dim=8)
    document = {"teacher_sha256": teacher, "teacher": "agent", "execution_horizon": 3, "plan_horizon": 3}
    save_corrector(correctors_folder(run) / name, Corrector(config), document | {"checkpoint": "best"})


def returns(run: Path, mode: str) -> list[float]:
    """Return what a mode's episodes returned, out of the file that the newest evaluation left."""
    newest = max((run / "evals").iterdir())
    return [row["episode_return"] for row in json.loads(newest.read_text())["episodes"] if row["mode"] == mode]


# --- results ----------------------------------------------------------------------------------------------------------


def test_modes_are_compared_with_the_baseline_on_the_same_starts(agent: Path, tmp_path: Path) -> None:
    run = copy_run(agent, tmp_path / "agent")
    result = gq("eval", run, "--mode", "policy,baseline,naive3", "--episodes", "5", "--seed", "5", "--json")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    policy, baseline, naive = printed["results"]
    for row in printed["results"]:
        assert set(FIGURES) <= row.keys()
        assert row["retention"] == pytest.approx(row["return_mean"] / baseline["return_mean"])
    assert (baseline["retention"], baseline["retention_ci95"]) == (1, [1, 1])
    assert (policy["planner_calls_per_step"], baseline["planner_calls_per_step"]) == (0, 1)
    lengths = [row["length"] for row in json.loads(next((run / "evals").iterdir()).read_text())["episodes"][-5:]]
    assert naive["planner_calls"] == sum(-(-length // 3) for length in lengths)
    assert baseline["accepted_length_mean"] == 1
    assert policy["accepted_length_mean"] is None
    assert naive["settings"]["execution_horizon"] == 3
    assert printed["frontiers"][0]["modes"][0] == "policy", "nothing is cheaper"
    assert printed["corrector"] is None


def test_baseline_is_another_name_of_plan(agent: Path, tmp_path: Path) -> None:
    run = copy_run(agent, tmp_path / "agent")
    evaluation = evaluate(run, episodes=EpisodeRequest(3), modes=["plan", "baseline"])
    assert returns(run, "plan") == returns(run, "baseline")
    assert [row.retention for row in evaluation.results] == [1, 1]  # type: ignore[attr-defined]


def test_without_the_baseline_there_is_no_share(agent: Path, tmp_path: Path) -> None:
    run = copy_run(agent, tmp_path / "agent")
    (row,) = json.loads(gq("eval", run, "--mode", "naive2", "--episodes", "1", "--json").stdout)["results"]
    assert row["retention"] is row["retention_ci95"] is None
    table = gq("eval", run, "--mode", "naive2,policy", "--episodes", "1").stdout
    assert "kept" not in table
    assert "actions from" in table
    assert "actions from" not in gq("eval", run, "--mode", "plan", "--episodes", "1").stdout


def test_a_sweep_has_all_standard_modes(agent: Path, tmp_path: Path) -> None:
    run = copy_run(agent, tmp_path / "agent")
    begun: list[tuple[str, int, int]] = []
    evaluation = evaluate(run, episodes=EpisodeRequest(1), modes=["sweep"], begin=lambda *mode: begun.append(mode))
    names = standard_modes(corrected=False)
    assert [row.mode for row in evaluation.results] == names
    assert begun == [(name, index, len(names)) for index, name in enumerate(names)]
    assert evaluation.frontiers[0].areas.keys() >= {"baseline", "policy", "naive", "hybrid"}


def test_options_reach_the_modes(agent: Path, tmp_path: Path) -> None:
    run = copy_run(agent, tmp_path / "agent")
    options = ("--spec-exec-horizon", "2", "--spec-plan-horizon", "5", "--spec-mismatch-threshold", "0")
    printed = json.loads(gq("eval", run, "--mode", "naive3+raw", "--episodes", "1", *options, "--json").stdout)
    (row,) = printed["results"]
    wanted = {"execution_horizon": 2, "plan_horizon": 5, "threshold": 0, "trigger": "raw"}
    assert {name: row["settings"][name] for name in wanted} == wanted
    assert row["planner_calls_per_step"] == 1, "every distance is above 0"
    assert row["misses_per_step"] == pytest.approx(1 - 1 / row["decisions"])


def test_what_options_changed_and_which_corrector_it_was_is_told_apart(corrected: Path) -> None:
    add_corrector(corrected, "temporal", sha256(load_run(corrected).checkpoint / "model.safetensors"))
    evaluate(corrected, episodes=EpisodeRequest(1), modes=["naive3", "spec3"])
    evaluate(corrected, Acting(mode_options={"execution_horizon": 6}), EpisodeRequest(1), modes=["naive3"])
    shown = gq("eval", corrected, "--mode", "spec3", "--corrector", "temporal", "--episodes", "1")
    names = ["naive3", "naive3, execution horizon 6", "spec3, temporal", "spec3, two-tower"]
    assert "spec3, temporal" in shown.stdout
    card = (corrected / "README.md").read_text()
    assert sorted(re.findall(r"mode ([^|]*?) \|", card)) == names
    assert sorted(row.way.mode or "" for row in read_evaluations(corrected).rows) == names


def test_nothing_is_written_into_a_run_that_is_gone(agent: Path, tmp_path: Path) -> None:
    run = copy_run(agent, tmp_path / "agent")

    def rename(_step: Step) -> None:
        if run.exists():
            run.rename(tmp_path / "renamed")

    with pytest.raises(GqError, match="renamed or removed meanwhile"):
        evaluate(run, episodes=EpisodeRequest(1), modes=["policy"], watch=rename)
    assert not run.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mode", "naive"), None),
        (("--mode", "naife3"), "unknown mode 'naife3'"),
        (("--mode", "baseline,"), "unknown mode ''"),
        (("--mode", "naive3", "--history-len", "2"), "--history-len changes none of these modes"),
        (("--mode", "spec3"), "agent has no corrector"),
        (("--mode", "spec3", "--corrector", "mine"), "agent has no corrector mine"),
    ],
)
def test_what_cannot_be_is_refused_before_an_episode(
    agent: Path, tmp_path: Path, arguments: tuple[str, ...], message: str | None
) -> None:
    run = copy_run(agent, tmp_path / "agent")
    result = gq("eval", run, "--episodes", "1", *arguments)
    if message is None:
        assert result.exit_code == 0, result.stderr
        return
    assert result.exit_code == USAGE
    assert message in result.stderr
    assert not (run / "evals").exists()


# --- correctors -------------------------------------------------------------------------------------------------------


def test_a_corrector_that_learnt_nothing_follows_the_plan(corrected: Path) -> None:
    evaluation = evaluate(corrected, episodes=EpisodeRequest(3), modes=["naive3", "spec3+never"])
    assert returns(corrected, "naive3") == returns(corrected, "spec3+never")
    naive, spec = evaluation.results
    assert spec.source_shares.keys() == {"plan", "correct"}  # type: ignore[attr-defined]
    assert spec.settings["corrector"] == evaluation.corrector == "two-tower"  # type: ignore[attr-defined]
    assert "corrector" not in naive.settings  # type: ignore[attr-defined]
    assert evaluation.warnings == []


def test_a_corrector_outside_of_what_it_learnt_is_warned_of(corrected: Path) -> None:
    warnings = evaluate(corrected, episodes=EpisodeRequest(1), modes=["spec6h5"]).warnings
    assert warnings == [
        "spec6h5 executes plans for longer than two-tower learnt to: 3",
        "spec6h5 makes plans of 5, and two-tower learnt from plans of 3",
    ]


def test_the_corrector_of_another_teacher_is_refused(corrected: Path) -> None:
    shutil.rmtree(correctors_folder(corrected))
    add_corrector(corrected, "two-tower", "0" * 64)
    with pytest.raises(UsageError, match="was distilled from another teacher"):
        evaluate(corrected, episodes=EpisodeRequest(1), modes=["spec3"])


def test_a_sweep_takes_the_corrector_that_fits_or_none(corrected: Path) -> None:
    fitting = sha256(load_run(corrected).checkpoint / "model.safetensors")
    assert fitting_corrector(corrected, fitting) == "two-tower"
    shutil.rmtree(correctors_folder(corrected))
    add_corrector(corrected, "two-tower", "0" * 64)
    assert fitting_corrector(corrected, fitting) is None
    evaluation = evaluate(corrected, episodes=EpisodeRequest(1), modes=["sweep"])
    assert [row.mode for row in evaluation.results] == standard_modes(corrected=False)
    assert evaluation.warnings == [LEFT_OUT]
    add_corrector(corrected, "temporal", fitting)
    assert fitting_corrector(corrected, fitting) == "temporal"


# --- films ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("drawing")
def test_a_film_shows_plans_corrections_and_what_they_cost(
    corrected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[list[str], list[Any]]] = []

    def keep(frame: np.ndarray, lines: list[str], colours: list[Any]) -> np.ndarray:
        shown.append((lines, colours))
        return draw_overlay(frame, lines, colours)

    monkeypatch.setattr(rendering, "draw_overlay", keep)
    film = render(
        corrected,
        Acting(mode="spec3+never"),
        video=VideoOptions(width=160, height=120, fps=1000),
        output=tmp_path / "a.gif",
    )
    assert film.mode == "spec3+never"
    words = [lines[-1].split() for lines, _ in shown]
    assert words[:4] == [
        ["plan", "1", "plans", "in", "1"],
        ["correct", "1", "1", "plans", "in", "2"],
        ["correct", "2", "1", "plans", "in", "3"],
        ["plan", "2", "plans", "in", "4"],
    ]
    plan, correct = SOURCE_COLOURS[Source.PLAN], SOURCE_COLOURS[Source.CORRECT]
    assert [colours for _, colours in shown[:4]] == [
        [plan],
        [plan, correct],
        [plan, correct, correct],
        [plan, correct, correct, plan],
    ]
    assert all("planned" in lines[1] for lines, _ in shown)


@pytest.mark.usefixtures("drawing")
def test_a_film_of_the_policy_speaks_of_no_plans(agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[str]] = []
    monkeypatch.setattr(rendering, "draw_overlay", lambda frame, lines, colours: shown.append(lines) or frame)
    render(agent, Acting(mode="policy"), video=VideoOptions(width=64, height=64), output=tmp_path / "a.gif")
    assert shown
    assert not any("plan" in line for lines in shown for line in lines)


def test_cells_below_the_text_have_the_colours_of_the_last_actions() -> None:
    frame = np.full((240, 320, 3), 90, np.uint8)
    red, green = (255, 0, 0), (0, 255, 0)
    plain, marked = draw_overlay(frame, ["abc", "def"]), draw_overlay(frame, ["abc", "def"], [red, green])
    has_red, has_green = ((marked == colour).all(axis=2) for colour in (red, green))
    assert has_red.any()
    assert has_green.any()
    assert not ((plain == red).all(axis=2) | (plain == green).all(axis=2)).any()
    red_columns, green_columns = np.flatnonzero(has_red.any(axis=0)), np.flatnonzero(has_green.any(axis=0))
    assert red_columns.max() < np.flatnonzero(has_green[np.flatnonzero(has_red.any(axis=1))].any(axis=0)).min()
    assert green_columns.max() > red_columns.max()
    assert (frame == 90).all(), "the frame itself is left alone"


def test_a_policy_that_acts_in_a_mode_has_its_settings(agent: Path) -> None:
    loaded = load_run(agent, Acting(mode="naive6h2", device="cpu"))
    assert isinstance(loaded.policy, PlanningPolicy)
    assert loaded.policy.planner.config.horizon == 2
    assert loaded.planner
    assert loaded.planner.config.horizon == 3, "the run's own is kept"
    with pytest.raises(UsageError, match="unknown mode 'nave6'"):
        load_run(agent, Acting(mode="nave6"))

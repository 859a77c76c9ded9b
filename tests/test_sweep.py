"""Ways to execute plans side by side: what they keep of the return, what they cost, which of them no other beats."""

import csv
import importlib.util
import io
import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from commandline import gq
from gq import presets
from gq.config import to_toml
from gq.errors import GqError, UsageError
from gq.planning.interfaces import Events, Source
from gq.planning.modes import resolve_mode
from gq.policies.loading import choose_modes
from gq.results.behaviour import (
    NUM_WARM_UP_STEPS,
    DecisionLog,
    ModeSummary,
    Point,
    area_under,
    best,
    frontiers,
    plain,
    standard_modes,
    strategy_of,
)
from gq.results.sweep import read_sweep, sweep_drawing
from gq.rollouts.statistics import Episode, retention, summarise
from gq.runs.evaluations import read_evaluations

TDMPC2 = presets.tdmpc2("1").replace({"task": "cartpole-swingup"})


def events(**changes: Any) -> Events:
    """Return what happened in one decision of two episodes that plan."""
    numbers: dict[str, Any] = {
        "rows": np.array([0, 1]),
        "source": np.full(2, Source.PLAN, np.int8),
        "age": np.zeros(2, int),
        "arrival_age": np.ones(2, int),
        "planned": np.ones(2, bool),
        "missed": np.zeros(2, bool),
        "surprise": np.zeros(2, np.float32),
        "drift": np.zeros(2, np.float32),
        "signal": np.full(2, np.nan, np.float32),
        "value": np.zeros(2, np.float32),
        "evaluations": np.full(2, 100),
        "milliseconds": np.full(2, 5.0),
    }
    return Events(**(numbers | changes))


def naive_log(num_steps: int) -> DecisionLog:
    """Return the log of two episodes that play three actions of each plan, which take 9 ms, the others 1 ms."""
    steps = []
    for step in range(num_steps):
        is_new = step % 3 == 0
        age = 0 if is_new else step % 3
        arrival = -1 if step == 0 else (3 if is_new else age)
        steps.append(
            events(
                source=np.full(2, Source.PLAN if is_new else Source.FOLLOW, np.int8),
                age=np.full(2, age),
                arrival_age=np.full(2, arrival),
                planned=np.full(2, is_new),
                surprise=np.full(2, 0.1 if step else np.nan, np.float32),
                drift=np.full(2, 0.1 * arrival if step else np.nan, np.float32),
                evaluations=np.full(2, 100 if is_new else 0),
                milliseconds=np.full(2, 9.0 if is_new else 1.0),
            )
        )
    return DecisionLog(steps)


def result(mode: str, value: float, calls: float, milliseconds: float | None = 1.0) -> ModeSummary:
    """Return a result that earned so much at such a cost."""
    (summary,) = summarise([Episode(0, 0.0, value, 500, False)], None, mode=mode)
    behaviour = replace(naive_log(3).behaviour(decided_at_once=1), planner_calls_per_step=calls)
    behaviour = replace(behaviour, decision_ms_mean=milliseconds)
    return ModeSummary(
        **plain(summary), **plain(behaviour), label=mode, settings={}, retention=None, retention_ci95=None
    )


# --- retention --------------------------------------------------------------------------------------------------------


def test_retention_is_the_ratio_of_means_and_its_interval_is_paired() -> None:
    generator = np.random.default_rng(1)
    baseline = generator.uniform(100, 900, 30)  # starts differ far more than modes do
    kept = retention(0.97 * baseline, baseline)
    assert kept
    assert kept[0] == pytest.approx(0.97)
    assert kept[1] == pytest.approx((0.97, 0.97)), "the same share of every start"
    shuffled = retention(0.97 * generator.permutation(baseline), baseline)
    assert shuffled
    assert shuffled[0] == pytest.approx(0.97)
    low, high = shuffled[1]
    assert low < 0.93, "without the pairs nothing so narrow can be said"
    assert high > 1.01


def test_there_is_no_share_of_nothing() -> None:
    assert retention(np.array([1.0, 2.0]), np.array([0.0, 0.0])) is None
    assert retention(np.array([1.0, 2.0]), np.array([-5.0, -6.0])) is None
    assert retention(np.array([1.0, 2.0]), np.array([-5.0, 6.0])) is None, "the mean may be below 0"
    assert retention(np.zeros(2), np.array([5.0, 6.0])) == (0.0, None)
    assert retention(np.zeros(6), np.arange(5.0, 11.0)) == (0.0, (0.0, 0.0))


# --- behaviour --------------------------------------------------------------------------------------------------------


def test_costs_are_per_decision() -> None:
    behaviour = naive_log(30).behaviour(decided_at_once=1)
    assert (behaviour.decisions, behaviour.planner_calls) == (60, 20)
    assert behaviour.planner_calls_per_step == pytest.approx(1 / 3)
    assert behaviour.model_evaluations_per_step == pytest.approx(100 / 3)
    assert behaviour.source_shares == pytest.approx({"plan": 1 / 3, "follow": 2 / 3})
    assert behaviour.accepted_length_mean == 3, "a first plan ends none"
    assert behaviour.misses_per_step == 0


def test_mismatch_is_by_the_age_of_plans() -> None:
    behaviour = naive_log(31).behaviour(decided_at_once=1)
    assert [(row.age, row.decisions) for row in behaviour.mismatch] == [(1, 20), (2, 20), (3, 20)]
    assert [row.drift for row in behaviour.mismatch] == pytest.approx([0.1, 0.2, 0.3])
    assert [row.surprise for row in behaviour.mismatch] == pytest.approx([0.1, 0.1, 0.1])


def test_times_leave_the_warm_up_out() -> None:
    log = naive_log(NUM_WARM_UP_STEPS + 30)
    log.steps[0] = replace(log.steps[0], milliseconds=np.full(2, 1e6))
    behaviour = log.behaviour(decided_at_once=1)
    assert behaviour.decision_ms_p50 == 1
    assert behaviour.decision_ms_p95 == behaviour.decision_ms_p99 == 9
    assert behaviour.decision_ms_mean == pytest.approx(11 / 3)
    assert behaviour.late_shares == {"20 Hz": 0, "50 Hz": 0}
    slow = DecisionLog([replace(step, milliseconds=np.array([30.0, 10.0])) for step in log.steps])
    assert slow.behaviour(decided_at_once=1).late_shares == {"20 Hz": 0, "50 Hz": 0.5}


def test_what_was_not_measured_is_none() -> None:
    never = events(
        source=np.full(2, Source.POLICY, np.int8),
        arrival_age=np.full(2, -1),
        planned=np.zeros(2, bool),
        drift=np.full(2, np.nan, np.float32),
    )
    behaviour = DecisionLog([never] * NUM_WARM_UP_STEPS).behaviour(decided_at_once=16)
    assert behaviour.accepted_length_mean is behaviour.decision_ms_mean is behaviour.decision_ms_p99 is None
    assert (behaviour.mismatch, behaviour.late_shares, behaviour.decided_at_once) == ([], {}, 16)
    assert behaviour.source_shares == {"policy": 1}
    assert "NaN" not in json.dumps(asdict(behaviour))


# --- frontiers --------------------------------------------------------------------------------------------------------


def points(*pairs: tuple[float, float]) -> list[Point]:
    return [Point(f"m{index}", "m", cost, value) for index, (cost, value) in enumerate(pairs)]


def test_the_frontier_is_what_nothing_as_cheap_surpasses() -> None:
    found = best(points((1, 100), (0.5, 99), (0.33, 80), (0.4, 70), (0.5, 90), (0, 10), (1, 100)))
    assert [(point.cost, point.value) for point in found] == [(0, 10), (0.33, 80), (0.5, 99), (1, 100)]
    assert best([]) == []


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-10, 10)), max_size=30))
def test_nothing_beats_the_frontier_and_it_beats_all_else(pairs: list[tuple[float, float]]) -> None:
    candidates = points(*pairs)
    frontier = best(candidates)
    for point in candidates:
        assert any(other.cost <= point.cost and other.value >= point.value for other in frontier)
    for point in frontier:
        assert not any(other.cost <= point.cost and other.value > point.value for other in candidates)


def test_areas_are_means_over_logarithmic_costs() -> None:
    assert area_under(points((1, 100)), 100) == 0, "nothing is saved"
    assert area_under(points((0, 100)), 100) == pytest.approx(1)
    assert area_under(points((1 / 16, 50)), 100) == pytest.approx(0.5)
    assert area_under(points((0.25, 100), (1, 100)), 100) == pytest.approx(0.5), "log 4 is half of log 16"
    assert area_under(points((0, 50), (0.25, 100)), 100) == pytest.approx(0.75)
    assert area_under(points((0, -5)), 100) == 0


def test_frontiers_of_calls_and_of_time() -> None:
    results = [result("baseline", 100, 1, 10), result("naive3", 90, 1 / 3, 4), result("small", 95, 1, 2)]
    calls, time = frontiers([*results, result("policy", 20, 0, None)], 100)
    assert (calls.cost, calls.modes) == ("planner_calls_per_step", ["policy", "naive3", "baseline"])
    assert (time.cost, time.modes) == ("decision_ms_mean", ["small", "baseline"])
    assert calls.areas.keys() == {"baseline", "naive", "small", "policy"}
    assert calls.areas["naive"] == pytest.approx(0.9 * math.log(3) / math.log(16))
    assert calls.area == pytest.approx(0.2 + 0.7 * math.log(3) / math.log(16))
    for nothing in (None, 0.0, -300.0):
        found = frontiers(results, nothing)[0]
        assert (found.area, found.areas) == (None, {}), "there is no share of less than nothing"


@pytest.mark.parametrize(
    ("mode", "strategy"),
    [
        ("naive3", "naive"),
        ("naive12h6_elite", "naive elite"),
        ("hybrid6+rescore@0.5", "hybrid+rescore"),
        ("spec6h3@0.25", "spec"),
        ("baselineh6", "baseline"),
        ("raw6h6@0.25", "raw"),
        ("baseline", "baseline"),
        ("baseline_elite", "baseline elite"),
        ("policy", "policy"),
        ("beam@0.5", "beam"),
    ],
)
def test_strategies_leave_numbers_out(mode: str, strategy: str) -> None:
    assert strategy_of(mode) == strategy


def test_a_sweep_has_the_baselines_that_count() -> None:
    modes = standard_modes(corrected=False)
    assert {"baseline", "policy", "naive3", "naive6h6", "hybrid2", "hybrid12"} <= set(modes)
    assert len(set(modes)) == len(modes)
    resolved = [resolve_mode(mode) for mode in standard_modes(corrected=True)]
    assert {mode.trigger for mode in resolved} == {"never", "raw", "response"}
    assert {mode.between for mode in resolved} == {"plan", "policy", "corrector", "refine", "beam"}
    assert not any(resolve_mode(mode).between == "corrector" for mode in modes)


# --- options of modes -------------------------------------------------------------------------------------------------


def test_options_change_the_modes_that_they_concern() -> None:
    asked = ["baseline", "naive3", "spec3", "policy"]
    options = {"plan_horizon": 6, "execution_horizon": 5, "threshold": 0.2, "history_length": None}
    modes = choose_modes(TDMPC2, asked, options)
    baseline, naive, spec, policy = modes
    assert (baseline, policy) == (resolve_mode("baseline"), resolve_mode("policy"))
    assert (naive.plan_horizon, naive.execution_horizon, naive.threshold) == (6, 5, 0)
    assert (spec.plan_horizon, spec.execution_horizon, spec.threshold, spec.history_length) == (6, 5, 0.2, 0)
    assert [mode.name for mode in choose_modes(TDMPC2, ["policy", "naive3", "policy"], {})] == ["policy", "naive3"]
    assert [mode.name for mode in choose_modes(TDMPC2, [], {})] == ["plan"]


def test_an_option_that_changes_nothing_is_refused() -> None:
    for changes, option in [
        ({"threshold": 0.5}, "--spec-mismatch-threshold"),
        ({"history_length": 2}, "--history-len"),
    ]:
        with pytest.raises(UsageError, match=f"^{option} changes none of these modes"):
            choose_modes(TDMPC2, ["baseline", "naive3"], changes)
    with pytest.raises(UsageError, match=r"^--spec-exec-horizon changes none"):
        choose_modes(TDMPC2, ["baseline", "policy"], {"execution_horizon": 4})
    with pytest.raises(UsageError, match="act in one way only"):
        choose_modes(presets.dt("1m"), [], {"plan_horizon": 3})


# --- pictures ---------------------------------------------------------------------------------------------------------


def swept_run(folder: Path, results: list[ModeSummary], *, name: str = "20260101-000000-0") -> Path:
    """Write a run with an evaluation of modes."""
    (folder / "evals").mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(to_toml(TDMPC2))
    episode = {"seed": 0, "length": 500, "terminated": False}
    document = {
        "checkpoint": "step-000000100",
        "versions": {},
        "results": [asdict(row) for row in results],
        "episodes": [episode | {"mode": row.mode, "episode_return": row.return_mean} for row in results],
    }
    (folder / "evals" / f"{name}.json").write_text(json.dumps(document))
    return folder


MODES = [result("baseline", 800, 1, 9), result("naive3", 780, 1 / 3, 3.5), result("policy", 500, 0, 0.4)]


def test_the_newest_comparison_is_drawn(tmp_path: Path) -> None:
    run = swept_run(tmp_path / "agent", MODES)
    swept_run(run, MODES[1:], name="20260102-000000-0")
    swept_run(run, MODES[:1], name="20260103-000000-0")
    found = read_sweep(run)
    assert [row["mode"] for row in found.results] == ["naive3", "policy"], "one mode alone is no comparison"
    assert found.baseline is None
    printed = json.loads(gq("plot", "--sweep", run, "--json").stdout)
    assert printed["sweeps"][0]["frontiers"]["planner_calls_per_step"] == ["policy", "naive3"]
    assert printed["path"] is None


def test_a_run_without_a_comparison_says_what_to_do(tmp_path: Path) -> None:
    run = swept_run(tmp_path / "agent", MODES[:1])
    with pytest.raises(UsageError, match="no evaluation of several modes") as caught:
        read_sweep(run)
    assert caught.value.hint == f"make one: gq eval {run} --mode sweep"
    (run / "evals" / "20260104.json").write_text("{")
    with pytest.raises(GqError, match=r"cannot use .*20260104\.json"):
        read_sweep(run)


def test_runs_become_rows_of_panels(tmp_path: Path) -> None:
    runs = [swept_run(tmp_path / name, MODES) for name in ("a", "b")]
    output = tmp_path / "both.png"
    answer = gq("plot", "--sweep", *runs, "--output", output)
    assert (answer.exit_code, answer.stdout.strip()) == (0, str(output))
    with Image.open(output) as both:
        width, height = both.size
    table = gq("plot", "--sweep", runs[0]).stdout.splitlines()
    assert table[-1] == str(runs[0] / "plots" / "sweep.png")
    assert [line.split()[1] for line in table[1:-1]] == ["policy", "naive3", "baseline"]
    with Image.open(runs[0] / "plots" / "sweep.png") as one:
        assert one.size[0] == width
        assert 1.8 < height / one.size[1] < 2, "two rows of panels, one legend"
        shades = np.asarray(one.convert("L"))
    assert (shades < 128).mean() > 0.005, "something is drawn"


def test_equal_sweeps_give_equal_files(tmp_path: Path) -> None:
    run = swept_run(tmp_path / "agent", MODES)
    files = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for file in files:
        sweep_drawing([read_sweep(run)]).write(file)
    assert files[0].read_bytes() == files[1].read_bytes()
    for name in ("policy", "naive3", "planner calls per decision", "milliseconds per decision"):
        assert f"<!-- {name}" in files[0].read_text()


def test_a_sweep_as_csv(tmp_path: Path) -> None:
    run = swept_run(tmp_path / "agent", MODES)
    rows = list(csv.DictReader(io.StringIO(sweep_drawing([read_sweep(run)]).csv())))
    assert [(row["run"], row["mode"], float(row["return_mean"])) for row in rows] == [
        ("agent", "baseline", 800),
        ("agent", "naive3", 780),
        ("agent", "policy", 500),
    ]
    assert gq("plot", "--sweep", run, "--csv").stdout.splitlines()[1].startswith("agent,cartpole-swingup,baseline,800")


def test_modes_of_earlier_versions_are_read_by_their_names(tmp_path: Path) -> None:
    names = ["naive3_elite", "feedback3", "relative6h6@0.5", "spec6+rescore@1", "small", "3step_naive"]
    run = swept_run(tmp_path / "agent", [MODES[0], *(result(name, 700, 0.5) for name in names)])
    for file in (run / "evals").iterdir():
        document = json.loads(file.read_text())
        for row in document["results"]:
            row["settings"] = {"action": "elite", "between": "feedback", "trigger": "rescore", "iterations": 3}
        file.write_text(json.dumps(document))
    assert [row["mode"] for row in read_sweep(run).results] == ["baseline", *names]
    assert gq("plot", "--sweep", run).exit_code == 0
    assert [row.way.mode for row in read_evaluations(run).rows] == ["baseline", *names]


# --- the script that measures all of them -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    file = Path(__file__).parents[1] / "scripts" / "measure_speculation.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_all_rows_of_the_script_are_modes(script: ModuleType, tmp_path: Path) -> None:
    rows = script.rows_of(tmp_path)
    assert len({row.name for row in rows}) == len(rows) > 25
    for row in rows:
        resolve_mode(row.mode)
    assert {"baseline", "policy", "hybrid12", "naive6h6", "refine3"} <= {row.mode for row in rows}
    for horizon, name in [(3, "two-tower"), (6, "blind")]:
        folder = tmp_path / "correctors" / name
        folder.mkdir(parents=True)
        document = {"plan_horizon": horizon, "model": {"plan_blind": name == "blind"}}
        (folder / "corrector.json").write_text(json.dumps(document))
    names = [row.name for row in script.rows_of(tmp_path) if row.corrector]
    assert {"spec3h6.blind", "spec100000h6+never.blind", "spec6h3@0.25.two-tower"} <= set(names)
    assert "spec6h6@0.25.blind" not in names, "ablations are not swept"


def test_percentiles_count_by_weight(script: ModuleType) -> None:
    values, weights = np.array([10.0, 1.0, 1.0, 1.0]), np.array([0.5, 0.5 / 3, 0.5 / 3, 0.5 / 3])
    assert script.weighted(values, weights) == pytest.approx([5.5, 1, 10, 10])
    assert script.typical(0.25, {"planned": [9.0, 10.0, 500.0], "other": [2.0]}) == pytest.approx(4)
    assert script.typical(0.0, {"planned": [], "other": [2.0]}) == 2


def test_saved_time_is_a_share_of_saved_calls(script: ModuleType) -> None:
    baseline = {"planner_calls_per_step": 1.0, "ms": {"typical": 10.0}}
    row = {"planner_calls_per_step": 0.25, "ms": {"typical": 4.0}}
    assert script.latency_share(row, baseline) == pytest.approx(0.6 / 0.75)
    assert script.latency_share(baseline, baseline) is None


def test_tables_replace_what_is_between_the_markers(script: ModuleType) -> None:
    text = f"before {script.BEGIN} old {script.END} after"
    once = script.insert(text, "new")
    assert once == f"before {script.BEGIN}\n\nnew\n\n{script.END} after"
    assert script.insert(once, "new") == once
    document = (Path(__file__).parents[1] / "docs" / "speculation.md").read_text(encoding="utf-8")
    assert script.BEGIN in document
    assert script.END in document
    with pytest.raises(SystemExit, match="no markers"):
        script.insert("nothing", "new")

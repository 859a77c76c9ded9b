"""Modes by name: what they mean, which are refused, what changes do."""

import subprocess
import sys
from pathlib import Path

import pytest

from gq.errors import UsageError
from gq.planning.modes import MODES, THRESHOLDS, UNLIMITED, Mode, resolve_mode

SOURCE = Path(__file__).parents[1] / "src"


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("baseline", {}),
        ("plan", {}),
        ("baseline_elite", {"action": "elite"}),
        ("policy", {"execution_horizon": 0}),
        ("small", {"iterations": 3, "num_samples": 128}),
        ("naive3", {"execution_horizon": 3}),
        ("naive", {"execution_horizon": 3}),
        ("naive6h6", {"execution_horizon": 6, "plan_horizon": 6}),
        ("naive2_elite", {"execution_horizon": 2, "action": "elite"}),
        ("hybrid", {"execution_horizon": 3, "between": "policy"}),
        ("hybrid12", {"execution_horizon": 12, "between": "policy"}),
        ("spec3", {"execution_horizon": 3, "between": "corrector", "trigger": "raw", "threshold": 0.5}),
        ("spec6", {"execution_horizon": 6, "between": "corrector", "trigger": "raw", "threshold": 0.5}),
        ("feedback3", {"execution_horizon": 3, "between": "feedback"}),
        ("refine3", {"execution_horizon": 3, "between": "refine"}),
        ("rescore12", {"execution_horizon": 12, "trigger": "rescore", "threshold": THRESHOLDS["rescore"]}),
        ("relative6@2.5", {"execution_horizon": 6, "trigger": "relative", "threshold": 2.5}),
        (
            "hybrid6h3+value@.5",
            {"execution_horizon": 6, "plan_horizon": 3, "between": "policy", "trigger": "value", "threshold": 0.5},
        ),
        ("spec6+never", {"execution_horizon": 6, "between": "corrector"}),
        (
            "beam",
            {
                "execution_horizon": UNLIMITED,
                "between": "beam",
                "trigger": "raw",
                "threshold": 0.25,
                "accept_threshold": 0.1,
            },
        ),
    ],
)
def test_a_name_means_what_it_says(text: str, fields: dict[str, object]) -> None:
    assert resolve_mode(text) == Mode(name=text, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("spec_corrector", "spec3"),
        ("3step_corrector", "spec3"),
        ("3_step_corrector", "spec3"),
        ("spec6_corrector", "spec6"),
        ("6step_corrector", "spec6"),
        ("3step_naive", "naive3"),
        ("3_step_naive", "naive3"),
        ("2_step_naive", "naive2"),
        ("open_loop_3", "naive3"),
        ("speculate", "beam"),
    ],
)
def test_old_names_go_on_meaning_the_same(old: str, new: str) -> None:
    assert resolve_mode(old) == resolve_mode(new, name=old)


def test_spec6_alone_executes_plans_for_six_decisions() -> None:
    assert resolve_mode("spec6_corrector").execution_horizon == 6
    assert resolve_mode("spec6_corrector", plan_horizon=6, threshold=0.3) == Mode(
        name="spec6_corrector",
        execution_horizon=6,
        plan_horizon=6,
        between="corrector",
        trigger="raw",
        threshold=0.3,
    )


def test_changes_leave_alone_what_is_none_and_thresholds_without_a_trigger() -> None:
    assert resolve_mode("naive3", threshold=0.5, plan_horizon=None) == resolve_mode("naive3")
    assert resolve_mode("spec3", trigger="never", threshold=0.5) == resolve_mode("spec3+never", name="spec3")
    assert resolve_mode("spec3", trigger="relative").threshold == THRESHOLDS["relative"]
    assert resolve_mode("spec3@2", plan_horizon=6).threshold == 2


def test_the_share_of_drafts_that_are_accepted_goes_with_the_threshold() -> None:
    for mode in (resolve_mode("beam@0.5"), resolve_mode("beam", threshold=0.5)):
        assert (mode.threshold, mode.accept_threshold) == (0.5, pytest.approx(0.2))
    assert resolve_mode("beam", threshold=0.5, accept_threshold=0.4).accept_threshold == 0.4


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("nave3", "no mode nave3", "naive3"),
        ("specc6", "no mode specc6", "spec6"),
        ("", "no mode without a name", "baseline"),
        ("plan3", "no mode plan3", "plan"),
        ("naive3@", "no mode naive3@", "naive3"),
        ("naive0", "for no decision", "policy"),
        ("naive3@1", "threshold for no trigger", "naive3+rescore@1"),
        ("naive3+often", "no trigger often", "rescore"),
        ("beam+value", "raw or relative", "for example"),
        ("beam+never", "raw or relative", "for example"),
        ("policy+raw@0.1", "never plans", "for example"),
        ("amortised+rescore", "never plans", "for example"),
        ("naive3h1001", "1000 decisions ahead", "for example"),
    ],
)
def test_wrong_names_are_refused_with_what_comes_closest(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolve_mode(text)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"execution_horizon": -1},
        {"threshold": float("nan")},
        {"threshold": -1.0, "trigger": "raw"},
        {"between": "luck"},
        {"between": "refine", "execution_horizon": 0},
        {"between": "feedback", "execution_horizon": 0},
        {"between": "beam"},
    ],
)
def test_impossible_modes_are_refused(changes: dict[str, object]) -> None:
    assert Mode(name="x", **changes).problem() is not None  # type: ignore[arg-type]


def test_all_names_for_completion_are_modes_and_different_from_each_other() -> None:
    modes = [resolve_mode(name) for name in MODES]
    assert [mode.name for mode in modes] == list(MODES)
    assert len(set(MODES)) == len(MODES)


def test_names_are_known_without_torch() -> None:
    code = "import sys, gq.planning.modes as m; m.resolve_mode('spec6'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(SOURCE)})

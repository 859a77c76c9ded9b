"""Modes by name: what they mean, which are refused, what changes do."""

import subprocess
import sys
from pathlib import Path

import pytest

from gq.errors import UsageError
from gq.planning.modes import MODES, SOME_MODES, THRESHOLDS, UNLIMITED, Mode, resolve_mode

SOURCE = Path(__file__).parents[1] / "src"


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("baseline", {}),
        ("plan", {}),
        ("baselineh6", {"plan_horizon": 6}),
        ("policy", {"execution_horizon": 0}),
        ("naive3", {"execution_horizon": 3}),
        ("naive", {"execution_horizon": 3}),
        ("naive6h6", {"execution_horizon": 6, "plan_horizon": 6}),
        ("naive6+raw", {"execution_horizon": 6, "trigger": "raw", "threshold": THRESHOLDS["raw"]}),
        ("naive6+response@2.5", {"execution_horizon": 6, "trigger": "response", "threshold": 2.5}),
        ("hybrid", {"execution_horizon": 3, "between": "policy"}),
        ("hybrid12", {"execution_horizon": 12, "between": "policy"}),
        ("spec3", {"execution_horizon": 3, "between": "corrector", "trigger": "raw", "threshold": 0.5}),
        ("spec6", {"execution_horizon": 6, "between": "corrector", "trigger": "raw", "threshold": 0.5}),
        ("refine3", {"execution_horizon": 3, "between": "refine"}),
        (
            "hybrid6h3+response@.5",
            {"execution_horizon": 6, "plan_horizon": 3, "between": "policy", "trigger": "response", "threshold": 0.5},
        ),
        ("spec6+never", {"execution_horizon": 6, "between": "corrector"}),
        ("beam", {"execution_horizon": UNLIMITED, "between": "beam", "trigger": "raw", "threshold": 0.25}),
    ],
)
def test_a_name_means_what_it_says(text: str, fields: dict[str, object]) -> None:
    assert resolve_mode(text) == Mode(name=text, **fields)  # type: ignore[arg-type]


def test_spec6_alone_executes_plans_for_six_decisions() -> None:
    assert resolve_mode("spec6").execution_horizon == 6
    assert resolve_mode("spec6", plan_horizon=6, threshold=0.3) == Mode(
        name="spec6",
        execution_horizon=6,
        plan_horizon=6,
        between="corrector",
        trigger="raw",
        threshold=0.3,
    )


def test_changes_leave_alone_what_is_none_and_thresholds_without_a_trigger() -> None:
    assert resolve_mode("naive3", threshold=0.5, plan_horizon=None) == resolve_mode("naive3")
    assert resolve_mode("spec3+never", threshold=0.5) == resolve_mode("spec3+never")
    assert resolve_mode("spec3@2", plan_horizon=6).threshold == 2
    assert resolve_mode("beam", threshold=0.5).threshold == resolve_mode("beam@0.5").threshold == 0.5


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("nave3", "unknown mode 'nave3'", "naive3"),
        ("specc6", "unknown mode 'specc6'", "spec3"),
        ("", "unknown mode ''", "baseline"),
        ("plan3", "unknown mode 'plan3'", "baseline"),
        ("naive3@", "unknown mode 'naive3@'", "naive3"),
        ("naive0", "unknown mode 'naive0'", "policy"),
        ("naive3@1", "a threshold, but no trigger", "naive3+response@1"),
        ("naive3+often", "unknown trigger 'often'", "response"),
        ("beam+response", "by the raw trigger", "for example"),
        ("beam+never", "by the raw trigger", "for example"),
        ("policy+raw@0.1", "never plans", "for example"),
        ("naive3h1001", "1000 decisions ahead", "for example"),
    ],
)
def test_wrong_names_are_refused_with_what_comes_closest(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolve_mode(text)
    assert hint in caught.value.hint


DROPPED = ("small", "feedback3", "naive3_elite", "rescore6", "spec_corrector", "3step_naive", "raw6", "amortised")


@pytest.mark.parametrize("text", DROPPED)
def test_modes_of_earlier_versions_are_unknown_and_the_hint_lists_what_there_is(text: str) -> None:
    with pytest.raises(UsageError, match=f"^unknown mode '{text}'$") as caught:
        resolve_mode(text)
    assert caught.value.hint == SOME_MODES
    for trigger in ("value", "relative", "rescore"):
        with pytest.raises(UsageError, match=f"^unknown trigger '{trigger}'$") as caught:
            resolve_mode(f"naive6+{trigger}")
        assert caught.value.hint == "triggers: never, raw, response"


@pytest.mark.parametrize(
    "changes",
    [
        {"execution_horizon": -1},
        {"threshold": float("nan")},
        {"threshold": -1.0, "trigger": "raw"},
        {"between": "refine", "execution_horizon": 0},
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

"""How plans are executed: for how many decisions, what is played between plans, and when a new plan is made early.

A mode is typed as NAME[K][hH][+TRIGGER][@THRESHOLD]. In `hybrid6h3+response@0.5`, a plan is executed for at most K = 6
decisions, it looks H = 3 decisions ahead, and a new one is made early where the trigger's signal is above 0.5.
"""

import re
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from gq.errors import UsageError

Between = Literal["plan", "policy", "corrector", "refine", "beam"]
Trigger = Literal["never", "raw", "response"]

UNLIMITED = 2**31 - 1  # decisions
MAX_PLAN_HORIZON = 1000  # decisions; plans are useless long before
THRESHOLDS: dict[Trigger, float] = {"never": 0.0, "raw": 0.5, "response": 1.0}
ACCEPTED_SHARE = 0.4  # of its threshold, up to which a beam search's drafts are played as they are


@dataclass(frozen=True, kw_only=True)
class Mode:
    """How plans are executed."""

    name: str = ""  # as typed
    execution_horizon: int = 1  # decisions that one plan is executed for at most; 0: never plan
    plan_horizon: int = 0  # decisions that a plan looks ahead; 0: the planner's own
    # What is played at a plan's ages 1, 2, ...: its own actions, the policy network's, the plan's corrected by a
    # network, a plan refined by one iteration, or what a beam search drafted. Past a plan's end it is the policy's
    # action, corrected where a network corrects plans.
    between: Between = "plan"
    trigger: Trigger = "never"  # what may call for a plan before the execution horizon
    threshold: float = 0.0  # above which it does
    history_length: int = 0  # decisions that a corrector sees, this one included; 0: as many as it can

    @property
    def is_planning(self) -> bool:
        """Whether the planner is called at all."""
        return self.execution_horizon > 0

    def problem(self) -> str | None:
        """What makes this impossible, or None."""
        if min(self.execution_horizon, self.plan_horizon, self.history_length) < 0:
            return "horizons and history are 0 or more"
        if not self.threshold >= 0:  # nor is it NaN
            return "thresholds are 0 or more"
        if self.plan_horizon > MAX_PLAN_HORIZON:
            return f"a plan looks {MAX_PLAN_HORIZON} decisions ahead at most"
        if not self.is_planning and (self.trigger != "never" or self.between in ("refine", "beam")):
            return "it never plans, so there is nothing to refine, draft or trigger"
        if self.between == "beam" and self.trigger != "raw":
            return "drafts of a beam search are judged by the raw trigger"
        return None


NAMED = {
    "plan": Mode(),
    "baseline": Mode(),
    "policy": Mode(execution_horizon=0),
    "naive": Mode(execution_horizon=3),
    "hybrid": Mode(execution_horizon=3, between="policy"),
    "spec": Mode(execution_horizon=3, between="corrector", trigger="raw", threshold=THRESHOLDS["raw"]),
    "refine": Mode(execution_horizon=3, between="refine"),
    "beam": Mode(execution_horizon=UNLIMITED, between="beam", trigger="raw", threshold=0.25),
}
COUNTED = ("naive", "hybrid", "spec", "refine")  # the names that K goes with
PATTERN = re.compile(
    rf"(?P<name>{'|'.join(NAMED)})(?P<k>[1-9]\d{{0,8}})?(?:h(?P<h>[1-9]\d{{0,8}}))?"
    r"(?:\+(?P<trigger>[a-z]+))?(?:@(?P<threshold>\d*\.?\d+))?"
)
MODES = (  # for completion
    *("baseline", "plan", "policy", "naive2", "naive3", "naive6", "hybrid2", "hybrid3", "hybrid6", "hybrid12"),
    *("spec3", "spec6", "refine3", "refine6", "naive6+raw", "naive6+response", "beam"),
)
SOME_MODES = "modes: baseline, policy, naive3, hybrid3, spec3, refine3 (or any other number), beam, sweep"


def resolve_mode(
    text: str,
    *,
    execution_horizon: int | None = None,
    plan_horizon: int | None = None,
    threshold: float | None = None,
    history_length: int | None = None,
) -> Mode:
    """The mode of a name such as `baseline`, `naive3`, `spec6h3` or `hybrid6+response@0.5`.

    Options that are None leave the mode as its name says, and so does a threshold where it has no trigger.

    Raises:
        UsageError: there is no such mode or trigger, or the mode is impossible.
    """
    mode = _parse(text)
    changes = {
        "execution_horizon": execution_horizon,
        "plan_horizon": plan_horizon,
        "threshold": None if mode.trigger == "never" else threshold,
        "history_length": history_length,
    }
    mode = _changed(mode, changes)
    if problem := mode.problem():
        raise UsageError(f"mode {text} is impossible: {problem}", hint="for example naive3, or hybrid6+response@1")
    return mode


def label_of(mode: Mode, corrector: str | None = None) -> str:
    """What tells a mode apart from others of its name: what options changed in it, and what corrects plans."""
    typed = _parse(mode.name)
    names = [field.name for field in fields(Mode) if getattr(typed, field.name) != getattr(mode, field.name)]
    changed = [f"{name.replace('_', ' ')} {getattr(mode, name)}" for name in names]
    return ", ".join([mode.name, *changed, *([corrector] if corrector else [])])


def _parse(text: str) -> Mode:
    match = PATTERN.fullmatch(text)
    if match is None or (match["k"] and match["name"] not in COUNTED):
        raise UsageError(f"unknown mode '{text}'", hint=SOME_MODES)
    mode = replace(NAMED[match["name"]], name=text)
    if match["trigger"] not in (None, *THRESHOLDS):
        raise UsageError(f"unknown trigger '{match['trigger']}'", hint=f"triggers: {', '.join(THRESHOLDS)}")
    for trigger, threshold in THRESHOLDS.items():
        if trigger == match["trigger"]:
            mode = replace(mode, trigger=trigger, threshold=threshold)
    if match["threshold"] and mode.trigger == "never":
        raise UsageError(f"mode {text} has a threshold, but no trigger", hint="for example naive3+response@1")
    horizons = {"execution_horizon": match["k"], "plan_horizon": match["h"]}
    mode = _changed(mode, {name: int(digits) if digits else None for name, digits in horizons.items()})
    return replace(mode, threshold=float(match["threshold"])) if match["threshold"] else mode


def _changed(mode: Mode, changes: dict[str, Any]) -> Mode:
    return replace(mode, **{name: value for name, value in changes.items() if value is not None})

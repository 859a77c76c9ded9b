"""How plans are executed: for how many decisions, what is played between plans, and when to plan before its time.

A mode is typed as NAME[K][hH][_elite][+TRIGGER][@THRESHOLD], for example `naive6`, `spec6h3`, `hybrid6+rescore@0.5`: a
plan is executed for K decisions, plans are H decisions long, and a trigger may ask for a plan before.
"""

import re
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from gq.errors import UsageError, suggest

Action = Literal["mean", "elite"]
Between = Literal["plan", "policy", "corrector", "feedback", "refine", "beam"]
Trigger = Literal["never", "raw", "relative", "value", "response", "rescore"]

UNLIMITED = 2**31 - 1  # decisions
MAX_PLAN_HORIZON = 1000  # decisions; plans are useless long before
DEFAULT_HORIZON = 3  # decisions that a plan is executed for
THRESHOLDS: dict[str, float] = {
    "never": 0.0,
    "raw": 0.5,
    "relative": 1.0,
    "value": 1.0,
    "response": 1.0,
    "rescore": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class Mode:
    """Describe how plans are executed."""

    name: str  # as typed
    execution_horizon: int = 1  # decisions that one plan is executed for at most; 0: never plan
    plan_horizon: int = 0  # decisions that a plan looks ahead; 0: the planner's own
    action: Action = "mean"  # which sequence of a plan is played
    # What is played at a plan's ages 1, 2, ...: its own actions, the policy network's, the plan's corrected by a
    # network or by linear feedback, a plan refined by one iteration, or what a beam search drafted. Behind a plan's end
    # it is the policy's action, corrected where a network corrects plans.
    between: Between = "plan"
    trigger: Trigger = "never"  # what may ask for a plan before the execution horizon
    threshold: float = 0.0  # above which it does
    accept_threshold: float = 0.0  # of `beam`: up to here drafts are played as they are
    history_length: int = 0  # decisions that a corrector sees, this one counted; 0: as many as it can
    iterations: int = 0  # of the planner, where it is not the run's own; 0: it is
    num_samples: int = 0  # likewise

    @property
    def is_planning(self) -> bool:
        """Whether the planner is called at all."""
        return self.execution_horizon > 0

    def problem(self) -> str | None:
        """Return what makes this impossible, or None."""
        numbers = (self.execution_horizon, self.plan_horizon, self.history_length, self.iterations, self.num_samples)
        if min(numbers) < 0:
            return "horizons, history, iterations and samples are 0 or more"
        if not (self.threshold >= 0 and self.accept_threshold >= 0):  # nor is it NaN
            return "thresholds are 0 or more"
        for value, known in ((self.action, Action), (self.between, Between), (self.trigger, Trigger)):
            if value not in get_args(known):
                return f"{value} is none of {', '.join(get_args(known))}"
        if self.execution_horizon == 0 and self.between in ("feedback", "refine", "beam"):
            return "without plans there is nothing to improve"
        if self.execution_horizon == 0 and self.trigger != "never":
            return "it never plans, so nothing is to ask for a plan"
        if self.plan_horizon > MAX_PLAN_HORIZON:
            return f"a plan looks {MAX_PLAN_HORIZON} decisions ahead at most"
        if self.between == "beam" and self.trigger not in ("raw", "relative"):
            return "drafts of a beam search are judged by how far off they are, raw or relative"
        if self.between == "beam" and self.accept_threshold > self.threshold:
            return f"drafts are accepted up to {self.accept_threshold:g}, but given up above {self.threshold:g}"
        return None


NAMED: dict[str, dict[str, Any]] = {
    "plan": {},
    "baseline": {},
    "policy": {"execution_horizon": 0},
    "amortised": {"execution_horizon": 0, "between": "corrector"},
    "small": {"iterations": 3, "num_samples": 128},
    "beam": {
        "execution_horizon": UNLIMITED,
        "between": "beam",
        "trigger": "raw",
        "threshold": 0.25,
        "accept_threshold": 0.1,
    },
}
FAMILIES: dict[str, dict[str, Any]] = {
    "naive": {},
    "hybrid": {"between": "policy"},
    "spec": {"between": "corrector", "trigger": "raw", "threshold": THRESHOLDS["raw"]},
    "feedback": {"between": "feedback"},
    "refine": {"between": "refine"},
    **{name: {"trigger": name, "threshold": THRESHOLDS[name]} for name in get_args(Trigger) if name != "never"},
}
ALIASES = {
    "spec_corrector": "spec3",
    "spec6_corrector": "spec6",
    "open_loop_3": "naive3",
    "speculate": "beam",
}
OLD_NAMES = {"naive": "naive", "corrector": "spec"}  # 3step_naive, 6_step_corrector
# For completion; any number of decisions goes with a family.
MODES = (
    *NAMED,
    *(f"naive{k}" for k in (2, 3, 6)),
    *(f"hybrid{k}" for k in (2, 3, 6, 12)),
    *("spec3", "spec6", "spec_corrector", "spec6_corrector"),
    *("feedback3", "refine3", "refine6"),
    *(f"{trigger}{k}" for trigger in get_args(Trigger) if trigger != "never" for k in (6, 12)),
)
FAMILY_NAMES = ", ".join(f"{name}K" for name in FAMILIES)
SOME_MODES = f"modes are baseline, policy, small, beam, sweep, and {FAMILY_NAMES}, as in naive3"
PATTERN = re.compile(
    r"(?P<base>[a-z]+?)(?P<k>\d{1,9})?(?:h(?P<h>\d{1,9}))?(?P<elite>_elite)?"
    r"(?:\+(?P<trigger>[a-z]+))?(?:@(?P<threshold>\d*\.?\d+))?"
)
OLD_PATTERN = re.compile(r"(?P<k>\d{1,9})_?step_(?P<kind>naive|corrector)")


def resolve_mode(text: str, **changes: Any) -> Mode:
    """Return the mode of a name such as `baseline`, `naive3`, `spec6h3` or `hybrid6+rescore@0.5`.

    Args:
        changes: fields to replace. Those that are None are left as they are, and so is the threshold of a mode that has
            no trigger; `accept_threshold` keeps its share of a threshold that changes.

    Raises:
        UsageError: no such mode, with the closest names, or an impossible one.
    """
    mode, changes = parse(text), {name: value for name, value in changes.items() if value is not None}
    if changes.get("trigger", mode.trigger) == "never":
        changes["threshold"] = 0.0
    elif "trigger" in changes and "threshold" not in changes:
        changes["threshold"] = THRESHOLDS.get(changes["trigger"], 0.0)
    if mode.accept_threshold and mode.threshold and "threshold" in changes:
        changes = {"accept_threshold": mode.accept_threshold / mode.threshold * changes["threshold"], **changes}
    mode = replace(mode, **changes)
    if problem := mode.problem():
        raise UsageError(f"mode {text} is impossible: {problem}", hint="for example naive3, or hybrid6+rescore@1")
    return mode


def label_of(mode: Mode, corrector: str | None = None) -> str:
    """Return what tells a mode apart from others of its name: what options changed in it, and what corrects plans."""
    typed = parse(mode.name)
    names = [field.name for field in fields(Mode) if getattr(typed, field.name) != getattr(mode, field.name)]
    changed = [f"{name.replace('_', ' ')} {getattr(mode, name)}" for name in names if name != "accept_threshold"]
    return ", ".join([mode.name, *changed, *([corrector] if corrector else [])])


def parse(text: str) -> Mode:
    """Return the mode of a name as it is typed.

    Raises:
        UsageError: no such mode, or a part of the name that does not fit the others.
    """
    match = PATTERN.fullmatch(modern_name(text))
    parts: dict[str, str | None] = match.groupdict() if match else {}
    base, horizon = parts.get("base") or "", parts.get("k")
    if base in FAMILIES:
        values = {"execution_horizon": int(horizon or DEFAULT_HORIZON), **FAMILIES[base]}
    elif base in NAMED and horizon is None:
        values = dict(NAMED[base])
    else:
        hint = suggest(text, [*MODES, *ALIASES], otherwise=SOME_MODES)
        raise UsageError(f"there is no mode {text or 'without a name'}", hint=hint)
    if base in FAMILIES and values["execution_horizon"] == 0:
        raise UsageError(f"mode {text} executes plans for no decision", hint=f"{base}3, or policy to do without plans")
    if plan_horizon := parts["h"]:
        values["plan_horizon"] = int(plan_horizon)
    if parts["elite"]:
        values["action"] = "elite"
    if trigger := parts["trigger"]:
        if trigger not in THRESHOLDS:
            raise UsageError(f"there is no trigger {trigger}", hint=f"triggers are {', '.join(THRESHOLDS)}")
        values |= {"trigger": trigger, "threshold": THRESHOLDS[trigger]}
    mode = Mode(name=text, **values)
    if threshold := parts["threshold"]:
        if mode.trigger == "never":
            raise UsageError(f"mode {text} has a threshold for no trigger", hint=f"for example {base}3+rescore@1")
        share = mode.accept_threshold / mode.threshold
        mode = replace(mode, threshold=float(threshold), accept_threshold=share * float(threshold))
    return mode


def modern_name(text: str) -> str:
    """Return today's name of a mode that is typed by an old one; all others as they are."""
    if match := OLD_PATTERN.fullmatch(text):
        return f"{OLD_NAMES[match['kind']]}{match['k']}"
    return ALIASES.get(text, text)

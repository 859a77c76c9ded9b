"""Finetuning an Online Decision Transformer (arXiv 2202.05607): episodes into a buffer, updates, alternately."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch

from gq.algos.odt import ODTLearner, ODTPolicy
from gq.algos.supervised import Execution
from gq.config import FinetuneConfig
from gq.data.trajectories import Trajectories
from gq.errors import UsageError
from gq.files import write_json
from gq.policies.algorithms import build_odt, build_odt_learner
from gq.policies.compute import choose_compute
from gq.rollouts.statistics import Change, Summary
from gq.runs.bound import damage_told
from gq.runs.card import COMPARISON_FILE, write_card
from gq.runs.folder import refuse_filled
from gq.runs.metrics import Listener
from gq.training import processes as distributed
from gq.training.building import choose_update_program
from gq.training.finetuning import Evaluations, Explorer, ReplayStore, begin_from_parent, own_reference, random_return
from gq.training.offline import facts_of, refuse_changed_data
from gq.training.session import Kept, Progress, Session, at_highest_target, by_target, open_session


@dataclass(frozen=True)
class FinetuneResult:
    """What a finished run left behind."""

    run: Path
    parent: str
    task: str
    steps: int  # updates
    iterations: int
    environment_steps: int
    seconds: float
    rollout_seconds: float
    evaluation_seconds: float
    best_step: int | None
    collapsed: bool
    comparison: list[Change]  # offline to online, per target, on fresh seeds; empty if not asked for
    evaluation: list[Summary]  # of the last evaluation, on the selection seeds


@dataclass
class OnlineProgress(Progress):
    """Where a finetuning run stands; saved in every checkpoint."""

    environment_steps: int = 0
    num_episodes: int = 0  # of the policy, all of them in the log
    evaluated_at: int = 0  # environment steps of the last evaluation
    first_return: float | None = None  # of the first evaluation, at the highest target
    collapsed: bool = False
    start_returns: list[list[float]] = field(default_factory=list)  # per target, of the parent, on fresh seeds
    rollout_seconds: float = 0.0
    evaluation_seconds: float = 0.0

    def position(self) -> dict[str, Any]:
        """Return where a record stands besides its step."""
        return {"environment_steps": self.environment_steps}

    def budgets(self, config: FinetuneConfig) -> list[tuple[float, float]]:
        """Return what was used and what may be used (0: no limit) of environment steps, iterations and seconds."""
        online = config.online
        return [
            (self.environment_steps, online.environment_steps),
            (self.num_episodes // online.rollouts, online.iterations),
            (self.seconds, 60 * online.minutes),
        ]

    def share_done(self, config: FinetuneConfig) -> float:
        """Return the used share of the budget nearest to its end; time counts only where it is the only one."""
        budgets = self.budgets(config)
        counted = [budget for budget in budgets[:2] if budget[1]] or budgets[2:]
        return max(done / limit for done, limit in counted)

    def is_between_iterations(self, config: FinetuneConfig) -> bool:
        """Whether the next thing to do is to run episodes."""
        online = config.online
        iteration, rest = divmod(self.step, online.rollouts * online.updates_per_rollout)
        return rest == 0 and self.num_episodes == iteration * online.rollouts

    def is_over(self, config: FinetuneConfig) -> bool:
        """Whether a budget is used up or the policy has collapsed, at the end of an iteration."""
        if not self.is_between_iterations(config):
            return False
        return self.collapsed or any(limit and done >= limit for done, limit in self.budgets(config))

    def evaluation_is_due(self, config: FinetuneConfig) -> bool:
        """Whether the iteration that just ended is the last, or passed a multiple of `eval.every` steps."""
        every, now = config.eval.every, self.environment_steps
        if not self.is_between_iterations(config) or self.evaluated_at == now:
            return False
        return self.is_over(config) or (every > 0 and now // every > self.evaluated_at // every)


def finetune(
    config: FinetuneConfig,
    trajectories: Trajectories,
    out: Path | None = None,
    *,
    resume: bool = False,
    listener: Listener | None = None,
) -> FinetuneResult:
    """Finetune in the folder `out`, or in a new one of the runs folder.

    Args:
        config: a new run's, or, with `resume`, the run's own.
        trajectories: the parent's dataset.

    Raises:
        UsageError: `out` holds something and `resume` is not set.
        GqError: the parent is not there any more, or the dataset has changed.
        Interrupted: stopped by a signal, everything saved.
    """
    if distributed.size() > 1:
        raise UsageError("finetuning runs in one process", hint="start it without torchrun")
    if out and not resume:
        refuse_filled(out, config.algo)
    compute = choose_compute(config.train.device, config.train.precision)
    origin = f", from {Path(config.online.parent).name} {config.online.checkpoint}"
    with open_session(config, out, compute, listener, OnlineProgress, origin=origin) as run:
        digest = trajectories.sha256()
        refuse_changed_data(run, "dataset_sha256", digest, config.data.dataset)
        learner, store = build(run, config, trajectories, digest)
        policy = ODTPolicy(learner.model, autocast=compute.autocast, delayed=config.data.mode == "delayed")
        evaluations = Evaluations(config, policy, own_reference(config, trajectories))

        def kept() -> Kept:
            store.log.sync()  # the episodes that a checkpoint refers to are on the disk before it
            return {"buffer": [entry.name for entry in store.buffer.entries]}, {}

        run.restore(learner, others=kept)
        explorer = Explorer(config, learner.model, compute)
        try:
            if config.online.final_episodes and not run.progress.start_returns:
                run.progress.start_returns = evaluations.fresh_returns()
            act = partial(explore, run, config, explorer, store)
            evaluation = learn(run, config, learner, act, evaluations, random_return(config, trajectories))
            starts = run.progress.start_returns
            comparison = evaluations.compare(run.folder, starts) if config.online.final_episodes else []
        finally:
            explorer.close()
            store.log.close()
        if comparison:
            write_json(run.folder / COMPARISON_FILE, {"targets": [asdict(one) for one in comparison]})
        write_card(run.folder)
        return result_of(run, config, comparison, evaluation)


def build(
    run: Session[OnlineProgress], config: FinetuneConfig, trajectories: Trajectories, digest: str
) -> tuple[ODTLearner, ReplayStore]:
    """Build the learner and its buffer, as the parent left them or as the last checkpoint has them."""
    torch.manual_seed(config.train.seed)
    model = build_odt(config, config.environment).to(run.compute.device)
    store = ReplayStore(config, run.folder, trajectories, run.compute.device)
    program = choose_update_program(config, run.compute, 1)
    learner = build_odt_learner(config, model, store.buffer, Execution(run.compute.autocast, program=program))
    if run.checkpoint:
        with damage_told(run.checkpoint.path):
            store.restore(run.checkpoint.state["buffer"], run.progress.num_episodes)
        parent = run.checkpoint.state["parent"] | {"run": config.online.parent}  # it may have been renamed
    else:
        parent = begin_from_parent(config, learner, store, digest)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    run.listener.note(f"{parameters:,} parameters on {run.compute}; asked online for {config.online.targets}")
    facts = facts_of(config.data.dataset, trajectories, digest, parameters) | {"parent": parent}
    run.describe(facts, compute=str(run.compute))
    return learner, store


def learn(
    run: Session[OnlineProgress],
    config: FinetuneConfig,
    learner: ODTLearner,
    act: Callable[[], bool],
    evaluations: Evaluations,
    low: float,
) -> list[Summary]:
    """Act and update alternately until a budget is used up; return the last evaluation.

    Args:
        act: runs an iteration's episodes; False: a stop request came first, and they are lost.
        low: the return of a random policy, above which a collapse is measured.
    """
    progress, evaluation = run.progress, list[Summary]()

    def evaluate() -> bool:
        nonlocal evaluation
        began = monotonic()
        evaluation = evaluations.select()
        record = progress.position() | by_target(evaluation)
        is_best = run.log_evaluation(record, at_highest_target(evaluation))
        show(run, config, record)
        progress.evaluated_at = progress.environment_steps
        note_collapse(run, config, at_highest_target(evaluation), low)
        progress.evaluation_seconds += monotonic() - began
        return is_best

    with run.training(is_over=progress.is_over(config)):
        if progress.first_return is None:
            run.save(is_best=evaluate())
        while not progress.is_over(config):
            if not progress.is_between_iterations(config) or act():
                learner.share_done = progress.share_done(config)
                run.count(learner.update(progress.step))
                if run.due(config.train.log_every):
                    show(run, config, run.report(progress.position()))
            is_best = False
            if progress.evaluation_is_due(config):
                with run.throughput.apart():
                    is_best = evaluate()
            run.save_if_due(is_best=is_best, is_last=progress.is_over(config))
    return evaluation


def note_collapse(run: Session[OnlineProgress], config: FinetuneConfig, highest: float, low: float) -> None:
    """Note whether less than a share of the first return is left, both counted from a random policy's, `low`."""
    progress = run.progress
    if progress.first_return is None:
        progress.first_return = highest
    share, first_gain = config.online.collapse, progress.first_return - low
    if share and first_gain > 0 and highest - low < share * first_gain:  # else there is nothing to lose
        progress.collapsed = True
        run.listener.note(f"stopping: the mean return fell from {progress.first_return:.0f} to {highest:.0f}")


def show(run: Session[OnlineProgress], config: FinetuneConfig, record: dict[str, Any]) -> None:
    """Show the listener how much of the tightest budget is used."""
    budgets = [budget for budget in run.progress.budgets(config) if budget[1]]
    done, limit = max(budgets, key=lambda budget: budget[0] / budget[1])
    run.show(record, min(done, limit), limit)


def explore(run: Session[OnlineProgress], config: FinetuneConfig, explorer: Explorer, store: ReplayStore) -> bool:
    """Run an iteration's episodes into the buffer; return False where a stop request came first: they are lost."""
    began, progress = monotonic(), run.progress
    first, num_rollouts = progress.num_episodes, config.online.rollouts
    with run.throughput.acting():
        episodes = explorer.run(first, is_stopped=lambda: bool(run.stop.requested))
    if len(episodes) < num_rollouts:
        return False
    for number, episode in episodes.items():
        store.add(number, episode)
    progress.num_episodes += num_rollouts
    num_steps = sum(len(episode.rewards) for episode in episodes.values())
    progress.environment_steps += num_steps
    run.throughput.num_environment_steps += num_steps
    progress.rollout_seconds += monotonic() - began
    returns = np.array([episode.rewards.sum(dtype=np.float64) for episode in episodes.values()])
    targets = np.array([explorer.recipe.target(number) for number in episodes])
    record = {
        **progress.position(),
        "iteration": progress.num_episodes // num_rollouts,
        "rollout/return_mean": float(returns.mean()),
        "rollout/return_min": float(returns.min()),
        "rollout/return_max": float(returns.max()),
        "rollout/length_mean": num_steps / num_rollouts,
        "rollout/target_mean": float(targets.mean()),
        "rollout/shortfall_mean": float((targets - returns).mean()),  # target minus achieved return
        **store.describe(),
    }
    run.write(record)
    show(run, config, record)
    return True


def result_of(
    run: Session[OnlineProgress], config: FinetuneConfig, comparison: list[Change], evaluation: list[Summary]
) -> FinetuneResult:
    """Return the result of a finished run."""
    progress = run.progress
    return FinetuneResult(
        run=run.folder,
        parent=config.online.parent,
        task=config.task,
        steps=progress.step,
        iterations=progress.num_episodes // config.online.rollouts,
        environment_steps=progress.environment_steps,
        seconds=progress.seconds,
        rollout_seconds=progress.rollout_seconds,
        evaluation_seconds=progress.evaluation_seconds,
        best_step=progress.best_step,
        collapsed=progress.collapsed,
        comparison=comparison,
        evaluation=evaluation,
    )

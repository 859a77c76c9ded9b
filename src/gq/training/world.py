"""Training TD-MPC2 (arXiv 2310.16828) in its environments: act and learn alternately, evaluate, save."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gq import presets
from gq.algos.tdmpc2 import TDMPC2Learner
from gq.config import TDMPC2Config
from gq.envs.engines import versions
from gq.envs.make import make
from gq.envs.scores import reference_for
from gq.errors import UsageError
from gq.planning.acting import PlanningPolicy
from gq.planning.mppi import Planner
from gq.policies.algorithms import build_planner, build_world_model, discount_of
from gq.policies.compute import choose_compute
from gq.rollouts.episodes import EpisodeRequest, roll_out
from gq.rollouts.statistics import Summary, summarise
from gq.runs.bound import damage_told
from gq.runs.card import write_card
from gq.runs.folder import SELECTION_SEED, refuse_filled, refuse_imported
from gq.runs.metrics import Listener
from gq.training import processes as distributed
from gq.training.building import choose_update_program
from gq.training.interaction import FinishedEpisode, Interaction, num_seed_decisions
from gq.training.session import Kept, Progress, Session, open_session


@dataclass(frozen=True)
class WorldTrainResult:
    """What a finished run left behind."""

    run: Path
    task: str
    parameters: int  # trained ones, without those of the target
    decisions: int
    frames: int
    steps: int  # updates
    seconds: float
    best_step: int | None
    evaluation: list[Summary]  # of the last step: by planning, by the policy alone; empty without evaluation


@dataclass
class WorldProgress(Progress):
    """Where a TD-MPC2 run stands; saved in every checkpoint."""

    decisions: int = 0  # of all environments
    num_episodes: int = 0  # that ended
    evaluated_at: int = 0  # decisions before the last evaluation
    simulation_seconds: float = 0.0
    evaluation_seconds: float = 0.0

    def num_owed(self, config: TDMPC2Config) -> int:
        """Return how many updates the decisions so far call for: none before the uniform ones are over."""
        if self.decisions < num_seed_decisions(config):
            return 0
        return int(self.decisions * config.train.updates_per_decision)

    def is_over(self, config: TDMPC2Config) -> bool:
        """Whether all decisions were taken and learnt from."""
        return self.decisions >= config.train.decisions and self.step >= self.num_owed(config)

    def evaluation_is_due(self, config: TDMPC2Config) -> bool:
        """Whether this is the end, or a multiple of `eval.every` decisions was passed and learnt from."""
        every = config.eval.every
        if not every or self.step < self.num_owed(config) or self.evaluated_at == self.decisions:
            return False
        return self.is_over(config) or self.decisions // every > self.evaluated_at // every

    def position(self, config: TDMPC2Config) -> dict[str, Any]:
        """Return where a record stands besides its step: the decisions so far, and the frames that they took."""
        return {"decisions": self.decisions, "frames": self.decisions * config.environment.action_repeat}


def train_world_model(
    config: TDMPC2Config, out: Path | None = None, *, resume: bool = False, listener: Listener | None = None
) -> WorldTrainResult:
    """Train a run in the folder `out`, or in a new one of the runs folder.

    Started by torchrun, every process calls this: each has environments and a replay buffer of its own and learns from
    its share of a batch, gradients are averaged, and the first process evaluates, logs and saves.

    Args:
        resume: continue the run in `out`; the caller has merged its stored configuration into `config`.

    Raises:
        UsageError: no task, or `out` holds something and `resume` is not set, or an imported run, which cannot go on.
        Interrupted: stopped by a signal, everything saved.
    """
    config = presets.with_task(config)
    if out:
        refuse_imported(out) if resume else refuse_filled(out, config.algo)
    # What follows may refuse, so it comes before there is a folder.
    task, num_each = config.environment, config.train.decisions // (distributed.size() * config.train.num_environments)
    if config.train.replay == "episodes" and not task.can_terminate and num_each < task.max_episode_steps:
        raise nothing_to_learn_from(config)
    distributed.refuse_uneven(config.train.batch_size, distributed.size())
    compute = choose_compute(distributed.local_device(config.train.device), config.train.precision)
    make(config.environment).close()
    with open_session(config, out, compute, listener, WorldProgress) as run:
        refuse_other_number(run)
        if (num_uniform := num_seed_decisions(config)) >= config.train.decisions:
            budget = f"{config.train.decisions:,} decisions"
            run.listener.note(f"{budget} are not more than the {num_uniform:,} uniform ones: nothing will be learnt")
        learner, planner, parameters = build(run, config)
        actor = Interaction(config, planner, run.folder, compute.device, run.processes.rank)
        try:
            restore(run, learner, actor)
            evaluation = learn(run, config, learner, planner, actor)
        finally:
            actor.close()
        if run.is_first:
            write_card(run.folder)  # which marks it as finished
        progress = run.progress
        return WorldTrainResult(
            run=run.folder,
            task=config.task,
            parameters=parameters,
            decisions=progress.decisions,
            frames=progress.position(config)["frames"],
            steps=progress.step,
            seconds=progress.seconds,
            best_step=progress.best_step,
            evaluation=evaluation,
        )


def build(run: Session[WorldProgress], config: TDMPC2Config) -> tuple[TDMPC2Learner, Planner, int]:
    """Build what learns and what plans with fresh weights, and say what there is; also the number of parameters."""
    compute, processes = run.compute, run.processes
    torch.manual_seed(config.train.seed)
    discount = discount_of(config)
    model = build_world_model(config, config.environment).to(compute.device)
    average = processes.average if processes.size > 1 else None
    unmeasured = "what compiling would gain here was not measured"
    program = choose_update_program(config, compute, processes.size, unprofitable=unmeasured)
    learner = TDMPC2Learner(
        model, config.update, discount=discount, autocast=compute.autocast, average=average, program=program
    )
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    where = f"{compute} in {processes.size} processes" if average else str(compute)
    run.listener.note(f"{parameters:,} parameters on {where}; discount {discount:g}")
    planner = build_planner(config, model, compute)
    if compute.device.type == "cuda":
        run.listener.note(f"updates are {learner.program}; plans are {planner.program}")
    programs = {"program": str(learner.program), "planner_program": str(planner.program)}
    run.describe({"parameters": parameters, "versions": versions()}, compute=where, discount=discount, **programs)
    return learner, planner, parameters


def restore(run: Session[WorldProgress], learner: TDMPC2Learner, actor: Interaction) -> None:
    """Bring learner and actor to where the last checkpoint was, and let both be saved."""

    def kept() -> Kept:  # the steps that a checkpoint refers to are on the disk before it
        run.progress.simulation_seconds = actor.simulation_seconds
        everyone = run.processes.gather((actor.state(), actor.tensors()))
        tensors: dict[str, Tensor] = {name: value for _, tensors in everyone for name, value in tensors.items()}
        return {"processes": [state for state, _ in everyone]}, tensors

    run.restore(learner, others=kept)
    if run.checkpoint:
        with damage_told(run.checkpoint.path):
            actor.open(run.checkpoint.state["processes"][run.processes.rank], run.checkpoint.optimizer)
        run.listener.note(f"going on from decision {run.progress.decisions}")
    else:
        actor.open()


def learn(
    run: Session[WorldProgress], config: TDMPC2Config, learner: TDMPC2Learner, planner: Planner, actor: Interaction
) -> list[Summary]:
    """Decide and update alternately until all decisions are taken; return the last evaluation."""
    progress, evaluation = run.progress, list[Summary]()
    share, num_uniform = config.train.batch_size // run.processes.size, num_seed_decisions(config)
    num_ready = run.processes.total(len(actor.ring.pieces) > 0)[0]  # processes that have something to draw
    with run.training(is_over=progress.is_over(config)):
        if progress.decisions < num_uniform:
            run.listener.note(f"{num_uniform} uniform decisions, then as many updates at once")
        while not progress.is_over(config):
            # Act until an update is due, or a stop request comes first.
            while num_ready < run.processes.size or progress.step >= progress.num_owed(config):
                if run.stop_reason() or progress.decisions >= config.train.decisions:
                    break
                finished = actor.tick(uniform=progress.decisions < num_uniform)
                num_deciding, num_ready = run.processes.total(actor.num_deciding, len(actor.ring.pieces) > 0)
                progress.decisions += num_deciding
                run.throughput.num_environment_steps += num_deciding
                if finished:
                    report_episodes(run, config, finished)
            if num_ready == run.processes.size and progress.step < progress.num_owed(config):
                run.count(learner.update(actor.ring.sample(share)))
                if run.due(config.train.log_every):
                    show(run, config, run.report(progress.position(config)))
            elif progress.step < progress.num_owed(config) and progress.decisions >= config.train.decisions:
                raise nothing_to_learn_from(config)
            is_best = False
            if progress.evaluation_is_due(config):
                began = monotonic()
                with run.throughput.apart():
                    if run.is_first:
                        evaluation = evaluate(config, planner)
                        is_best = log_evaluation(run, config, *evaluation)
                    is_best = run.processes.from_first(is_best)
                progress.evaluated_at = progress.decisions
                progress.evaluation_seconds += monotonic() - began
            run.save_if_due(is_best=is_best, is_last=progress.is_over(config))
    return evaluation


def report_episodes(run: Session[WorldProgress], config: TDMPC2Config, episodes: list[FinishedEpisode]) -> None:
    """Log the episodes that just ended."""
    progress = run.progress
    progress.num_episodes += len(episodes)
    record = {
        **progress.position(config),
        "episode/number": progress.num_episodes,
        "episode/return_mean": float(np.mean([episode.episode_return for episode in episodes])),
        "episode/length_mean": float(np.mean([episode.length for episode in episodes])),
        "episode/terminated": float(np.mean([episode.terminated for episode in episodes])),
    }
    run.write(record)
    show(run, config, record)


def log_evaluation(run: Session[WorldProgress], config: TDMPC2Config, planned: Summary, policy: Summary) -> bool:
    """Log what planning and the policy alone earned; return whether planning earned more than ever."""
    record = {
        **run.progress.position(config),
        "eval/return_mean": planned.return_mean,
        "eval/return_std": planned.return_std,
        "eval/length_mean": planned.length_mean,
        "eval/policy_return_mean": policy.return_mean,
    }
    is_best = run.log_evaluation(record, planned.return_mean)
    show(run, config, record)
    return is_best


def show(run: Session[WorldProgress], config: TDMPC2Config, record: dict[str, Any]) -> None:
    """Show the listener how many of the decisions were taken, and how many updates for them are left."""
    run.look_at_clock()
    progress, train = run.progress, config.train
    left = progress.num_owed(config) - progress.step
    is_many = left > train.num_environments * train.updates_per_decision  # more than those of one tick
    done = min(progress.decisions, train.decisions)
    run.show(record | {"updates_left": left if is_many else 0}, done, train.decisions)


def evaluate(config: TDMPC2Config, planner: Planner) -> list[Summary]:
    """Return what planning earns, and the policy alone, on the episodes that choose the best checkpoint."""
    starts = EpisodeRequest(config.eval.num_episodes, seed=SELECTION_SEED).starts([0.0])
    results = []
    for mode in ("plan", "policy"):
        policy = PlanningPolicy(planner, task=config.environment, mode=mode)
        results += summarise(roll_out(policy, config.environment, starts), reference_for(config.environment, ""))
    return results


def nothing_to_learn_from(config: TDMPC2Config) -> UsageError:
    """Return what to say where no episode that could be drawn from ends within all decisions."""
    message = f"no episode to learn from ends within {config.train.decisions} decisions"
    enough = 8 * config.environment.max_episode_steps
    return UsageError(message, hint=f"--decisions {enough}, or learn from unfinished ones: --set train.replay=steps")


def refuse_other_number(run: Session[WorldProgress]) -> None:
    """Raise UsageError if a run is resumed with another number of processes."""
    size = run.processes.size
    if run.checkpoint and (number := len(run.checkpoint.state["processes"])) != size:
        folder = shlex.quote(str(run.folder))
        hint = f"resume with torchrun --nproc-per-node {number} -m gq train tdmpc2 --out {folder} --resume"
        raise UsageError(f"the run began with {number} processes, not {size}", hint=hint)

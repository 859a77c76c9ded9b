"""The algorithms: what builds the model, the learner and the policy of each, and what each can do.

A new one is its file in gq.algos, its model, its configuration with a preset, an entry here, and its command.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from gq.algos.bc import BCPolicy
from gq.algos.bc import action_loss as bc_loss
from gq.algos.dt import DTPolicy
from gq.algos.dt import action_loss as dt_loss
from gq.algos.odt import ODTLearner, ODTPolicy
from gq.algos.supervised import Execution, SupervisedLearner, num_valid_steps, num_windows
from gq.algos.td3bc import TD3BCLearner, TD3BCPolicy
from gq.config import BCConfig, DTConfig, FinetuneConfig, ODTConfig, TD3BCConfig, TDMPC2Config, TrainedConfig
from gq.data.transitions import TransitionSampler
from gq.data.windows import Sampler
from gq.envs.tasks import Task
from gq.errors import UsageError
from gq.models.actor_critic import ActorCritic
from gq.models.decision_transformer import DecisionTransformer
from gq.models.mlp import ObservationMLP
from gq.models.stochastic_transformer import StochasticTransformer
from gq.models.world_config import discount_factor
from gq.models.world_model import WorldModel
from gq.planning.acting import PlanningPolicy
from gq.planning.modes import resolve_mode
from gq.planning.mppi import Planner
from gq.policies.compute import Compute, choose_program
from gq.rollouts.episodes import Policy


@dataclass(frozen=True)
class Algorithm:
    """How the parts of an algorithm are built from its configuration, and what it can do."""

    build_model: Callable[[Any, Task], nn.Module]  # with fresh weights
    build_policy: Callable[[Any, Any, Compute, bool], Policy]  # acts with a model; True: samples its actions
    # Of a model and the data; None: it does not learn from windows of a dataset.
    build_learner: Callable[[Any, Any, Sampler, Execution], SupervisedLearner] | None = None
    # Of a model and single transitions; None: it has no critic.
    build_value_learner: Callable[[Any, Any, TransitionSampler, Execution], TD3BCLearner] | None = None
    can_sample: bool = False  # its policy has a distribution
    has_context: bool = False  # it is a transformer
    takes_target: bool = True  # acting depends on a target return
    ends_windows: bool = False  # only the last step of each window is learnt from
    plans: bool = False


def build_model(config: TrainedConfig) -> nn.Module:
    """Return the configured model with fresh weights."""
    return ALGORITHMS[config.algo].build_model(config, config.environment)


def build_policy(config: TrainedConfig, model: nn.Module, compute: Compute, *, stochastic: bool = False) -> Policy:
    """Return the policy that acts with a model, a world model's by planning at every decision.

    Raises:
        UsageError: `stochastic` of a model without a distribution to sample from.
    """
    algorithm = ALGORITHMS[config.algo]
    if stochastic and not algorithm.can_sample:
        raise UsageError(f"a {config.algo} policy has no distribution to sample from", hint="omit --stochastic")
    return algorithm.build_policy(config, model, compute, stochastic)


# --- sequence models ------------------------------------------------------------------------------------------------


def _dims(task: Task) -> dict[str, int]:
    return {"observation_dim": task.observation_dim, "action_dim": task.action_dim}


def _build_dt(config: DTConfig, task: Task) -> DecisionTransformer:
    return DecisionTransformer(config.model, **_dims(task))


def _build_bc(config: BCConfig, task: Task) -> ObservationMLP:
    return ObservationMLP(config.model, **_dims(task))


def build_odt(config: ODTConfig | FinetuneConfig, task: Task) -> StochasticTransformer:
    """Return the transformer of an Online Decision Transformer."""
    return StochasticTransformer(config.model, **_dims(task))


def _dt_learner(
    config: DTConfig, model: DecisionTransformer, sampler: Sampler, execution: Execution
) -> SupervisedLearner:
    return SupervisedLearner(
        model,
        lambda model, batch: {"loss": dt_loss(model, batch)},
        sampler,
        config.optim,
        config.train,
        execution,
        num_terms=num_valid_steps,
    )


def _bc_learner(config: BCConfig, model: ObservationMLP, sampler: Sampler, execution: Execution) -> SupervisedLearner:
    return SupervisedLearner(
        model,
        lambda model, batch: {"loss": bc_loss(model, batch)},
        sampler,
        config.optim,
        config.train,
        execution,
        num_terms=num_windows,
    )


def build_odt_learner(
    config: ODTConfig | FinetuneConfig, model: StochasticTransformer, sampler: Sampler, execution: Execution
) -> ODTLearner:
    """Return the learner of an Online Decision Transformer that is on the device already."""
    return ODTLearner(model, sampler, config.optim, config.train, config.entropy, execution)


def _dt_policy(config: DTConfig, model: DecisionTransformer, compute: Compute, _: bool) -> DTPolicy:
    delayed = config.data.mode == "delayed"
    return DTPolicy(model, autocast=compute.autocast, delayed=delayed, context=config.eval.context)


def _bc_policy(_config: BCConfig, model: ObservationMLP, compute: Compute, _: bool) -> BCPolicy:
    return BCPolicy(model, autocast=compute.autocast)


def _odt_policy(
    config: ODTConfig | FinetuneConfig, model: StochasticTransformer, compute: Compute, stochastic: bool
) -> ODTPolicy:
    delayed, context = config.data.mode == "delayed", config.eval.context
    return ODTPolicy(model, autocast=compute.autocast, delayed=delayed, context=context, stochastic=stochastic)


# --- critics --------------------------------------------------------------------------------------------------------


def _build_actor_critic(config: TD3BCConfig, task: Task) -> ActorCritic:
    return ActorCritic(config.model, **_dims(task))


def _td3bc_learner(
    config: TD3BCConfig, model: ActorCritic, sampler: TransitionSampler, execution: Execution
) -> TD3BCLearner:
    return TD3BCLearner(model, sampler, config, execution)


def _td3bc_policy(_config: TD3BCConfig, model: ActorCritic, compute: Compute, _: bool) -> TD3BCPolicy:
    return TD3BCPolicy(model, autocast=compute.autocast)


# --- world models ---------------------------------------------------------------------------------------------------


def build_world_model(config: TDMPC2Config, task: Task) -> WorldModel:
    """Return the world model of TD-MPC2; it predicts terminations where the task has them."""
    return WorldModel(config.model, **_dims(task), episodic=task.can_terminate)


def build_planner(config: TDMPC2Config, model: WorldModel, compute: Compute) -> Planner:
    """Return what plans with a model that is on the device already."""
    return Planner(
        model,
        config.planner,
        discount=discount_of(config),
        bfloat16=compute.bfloat16,
        program=choose_program(config.planner.compile, compute.device),
    )


def discount_of(config: TDMPC2Config) -> float:
    """Return the discount per decision."""
    return config.train.discount or discount_factor(
        config.environment.max_episode_steps, high=config.train.discount_max
    )


def _planning_policy(config: TDMPC2Config, model: WorldModel, compute: Compute, stochastic: bool) -> PlanningPolicy:
    return PlanningPolicy(
        build_planner(config, model, compute),
        task=config.environment,
        mode=resolve_mode("plan"),
        stochastic=stochastic,
    )


ALGORITHMS = {
    "dt": Algorithm(_build_dt, _dt_policy, _dt_learner, has_context=True),
    "bc": Algorithm(_build_bc, _bc_policy, _bc_learner, takes_target=False, ends_windows=True),
    "odt": Algorithm(build_odt, _odt_policy, build_odt_learner, can_sample=True, has_context=True),
    "td3bc": Algorithm(_build_actor_critic, _td3bc_policy, build_value_learner=_td3bc_learner, takes_target=False),
    "finetune": Algorithm(build_odt, _odt_policy, build_odt_learner, can_sample=True, has_context=True),
    "tdmpc2": Algorithm(build_world_model, _planning_policy, can_sample=True, takes_target=False, plans=True),
}

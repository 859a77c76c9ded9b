"""What a TD-MPC2 agent costs to hold, to plan with and to train, in closed form.

Multiply-adds are those of matrix products. N samples of a plan, P of them from the policy, J iterations.
"""

from dataclasses import dataclass

from gq.config import TDMPC2Config
from gq.models.costs import FLOAT32_BYTES, TRAINED_BYTES
from gq.models.world_config import PlannerConfig, WorldModelConfig, parameter_counts

NUM_VALUE_HEADS = 2  # of the Q ensemble, that a plan or an update asks


@dataclass(frozen=True, kw_only=True)
class WorldParamsReport:
    """The cost of one TD-MPC2 agent on one task, all by formula.

    Published counts are of trained parameters without a network that predicts terminations, which only tasks have whose
    episodes end early. So is `parameters`; `parameters_in_all` leaves nothing out.
    """

    size: str
    parameters: int  # trained, without those of the target and of the termination network
    parameters_with_target: int
    parameters_termination: int  # 0 where episodes only end at their time limit
    parameters_in_all: int  # of all networks, as a checkpoint holds them
    networks: dict[str, int]  # trained parameters of each; the target has as many as q once more
    weights_bytes: int  # of all networks, float32
    batch_size: int  # sequences in an update
    training_memory_bytes: int  # of an update, without the replay
    replay_bytes: int  # of the decisions that are kept to learn from, at its largest
    policy_multiply_adds: int  # of a decision without planning: encoder and policy
    plan_multiply_adds: int  # of a plan
    original_plan_multiply_adds: int  # of the same plan in the original, which computes all heads of Q
    update_multiply_adds: int


def report_world(config: TDMPC2Config, *, batch_size: int | None = None) -> WorldParamsReport:
    """Report on a TD-MPC2 agent for its task. `batch_size` is another than that of the configuration.

    Raises:
        UsageError: no such task.
    """
    task, model = config.environment, config.model
    dims = {"observation_dim": task.observation_dim, "action_dim": task.action_dim}
    networks = parameter_counts(model, **dims, episodic=task.can_terminate)
    rows = row_costs(model, **dims, episodic=task.can_terminate)
    trained, batch_size = sum(networks.values()), batch_size or config.train.batch_size
    parameters = trained - networks["termination"]
    num_kept = min(config.train.buffer_size, config.train.decisions)
    planned = (model, config.planner, rows, task.action_dim)
    update = {"horizon": config.update.horizon, "batch_size": batch_size}
    return WorldParamsReport(
        size=config.size,
        parameters=parameters,
        parameters_with_target=parameters + networks["q"],
        parameters_termination=networks["termination"],
        parameters_in_all=trained + networks["q"],
        networks=networks,
        weights_bytes=FLOAT32_BYTES * (trained + networks["q"]),
        batch_size=batch_size,
        training_memory_bytes=update_memory_bytes(
            model, parameters=trained, action_dim=task.action_dim, episodic=task.can_terminate, **update
        ),
        replay_bytes=FLOAT32_BYTES * num_kept * (task.observation_dim + task.action_dim + 2),
        policy_multiply_adds=rows.encoder + rows.policy,
        plan_multiply_adds=plan_cost(*planned),
        original_plan_multiply_adds=original_plan_cost(*planned),
        update_multiply_adds=update_cost(model, rows, observation_dim=task.observation_dim, **update),
    )


@dataclass(frozen=True, kw_only=True)
class RowCosts:
    """Multiply-adds of each network for one row of input."""

    encoder: int
    dynamics: int
    reward: int
    termination: int  # 0 without such a network
    policy: int
    q: int  # of one head


def row_costs(config: WorldModelConfig, *, observation_dim: int, action_dim: int, episodic: bool = False) -> RowCosts:
    """Return what each network multiplies for one row."""
    latent, width = config.latent_dim + config.task_dim, config.mlp_dim
    pair = (latent + action_dim) * width + width * width
    encoder_dim = config.encoder_dim
    inner = (config.num_encoder_layers - 2) * encoder_dim * encoder_dim
    return RowCosts(
        encoder=(observation_dim + config.task_dim) * encoder_dim + inner + encoder_dim * config.latent_dim,
        dynamics=pair + width * config.latent_dim,
        reward=pair + width * config.num_bins,
        termination=(latent * width + width * width + width) * episodic,
        policy=latent * width + width * width + width * 2 * action_dim,
        q=pair + width * config.num_bins,
    )


def plan_cost(config: WorldModelConfig, planner: PlannerConfig, rows: RowCosts, action_dim: int) -> int:
    """Return the multiply-adds of one plan of `gq.planning.mppi`, for one environment, without the encoder.

    Each of J iterations follows N - P sequences and values N, the first follows the policy's P too; at the end two are
    followed and valued. For the first decision of each, what the present latent gives is computed once.
    """
    horizon, num_samples, num_policy = planner.horizon, planner.num_samples, planner.num_policy_samples
    iterations = planner.num_iterations(action_dim)
    shared = 2 * config.latent_dim * config.mlp_dim  # of dynamics and reward
    follow = horizon * (rows.dynamics + rows.reward + rows.termination) - shared
    value = rows.policy + NUM_VALUE_HEADS * rows.q
    from_policy = num_policy * follow + (1 + (horizon - 1) * num_policy) * rows.policy
    iteration = shared + (num_samples - num_policy) * follow + num_samples * value
    return from_policy + iterations * iteration + shared + 2 * (follow + value)


def original_plan_cost(config: WorldModelConfig, planner: PlannerConfig, rows: RowCosts, action_dim: int) -> int:
    """Return the multiply-adds of the same plan in the original: all N sequences each time, and all heads of Q."""
    horizon = planner.horizon
    from_policy = planner.num_policy_samples * (horizon * rows.policy + (horizon - 1) * rows.dynamics)
    followed = horizon * (rows.dynamics + rows.reward + rows.termination)
    sample = followed + rows.policy + config.num_q * rows.q
    return from_policy + planner.num_iterations(action_dim) * planner.num_samples * sample


def update_cost(
    config: WorldModelConfig, rows: RowCosts, *, observation_dim: int, horizon: int, batch_size: int
) -> int:
    """Return the multiply-adds of one update: targets, model and Q forward and backward, policy likewise.

    A backward pass costs twice the forward pass, less the gradients of observations and of the policy's latents, which
    nobody needs, and those of the weights of Q in the policy's loss.
    """
    targets = horizon * (rows.encoder + rows.policy + NUM_VALUE_HEADS * rows.q)
    unrolled = rows.dynamics + rows.reward + rows.termination + config.num_q * rows.q
    world = 3 * (rows.encoder + horizon * unrolled) - (observation_dim + config.task_dim) * config.encoder_dim
    from_latents = (config.latent_dim + config.task_dim) * config.mlp_dim
    policy = (horizon + 1) * (3 * rows.policy - from_latents + 2 * NUM_VALUE_HEADS * rows.q)
    return batch_size * (targets + world + policy)


def update_memory_bytes(
    config: WorldModelConfig, *, parameters: int, action_dim: int, episodic: bool, horizon: int, batch_size: int
) -> int:
    """Return the memory of an update in float32, without its batch and the allocator's reserve.

    16 bytes per trained parameter, 4 per parameter of the target, and what the forward pass of model and Q keeps for
    the backward pass: 3 floats per unit with Mish (in Q 4, 5 where it drops), 3 per entry of a latent, 1 per bin, and
    the input of each network. It is up to a quarter above the truth on a CPU, where units of Q keep 3 floats too.

    Args:
        parameters: trained ones.
    """
    width, latent = config.mlp_dim, config.latent_dim + config.task_dim
    pair = latent + action_dim
    encoder = 3 * (config.num_encoder_layers - 1) * config.encoder_dim + 3 * config.latent_dim
    dynamics = pair + 6 * width + 4 * config.latent_dim
    reward = pair + 6 * width + config.num_bins
    q_heads = pair + config.num_q * (9 * width + config.num_bins)
    kept = batch_size * (encoder + horizon * (dynamics + reward + q_heads + episodic * (latent + 6 * width)))
    head = row_costs(config, observation_dim=0, action_dim=action_dim).q + 6 * width + config.num_bins
    return TRAINED_BYTES * parameters + FLOAT32_BYTES * (config.num_q * head + kept)

"""Named recipes: one function per algorithm, the rest derived from the size."""

import re
from dataclasses import replace

from gq.config import (
    BCConfig,
    CheckpointConfig,
    DataConfig,
    DTConfig,
    EvalConfig,
    FinetuneConfig,
    ODTConfig,
    OnlineConfig,
    OptimConfig,
    TargetEvalConfig,
    TD3BCConfig,
    TDMPC2Config,
    TrainConfig,
    UpdateConfig,
)
from gq.envs.specs import settle
from gq.envs.tasks import CONTROL_TASKS, Task, proper_id
from gq.errors import UsageError, suggest
from gq.models.config import StochasticModelConfig, resolve_size
from gq.models.critic_config import ActorCriticConfig, CriticConfig
from gq.models.world_config import resolve_world_model_size

# Learning rate, warm-up steps, parts a batch is computed in. Larger models want smaller steps and more memory.
RECIPES = {
    "1m": (1e-3, 500, 1),
    "13m": (6e-4, 500, 1),
    "0.1b": (3e-4, 1000, 2),
    "0.6b": (1e-4, 1000, 4),
    "1.9b": (1e-4, 1000, 8),
}


EASY_ACTION_CLIP = 0.01  # with the paper's 1e-6, the atanh of an action on the box's edge is 7 and dominates the loss


def dt(size: str = "1m") -> DTConfig:
    """Return the Decision Transformer of a size. Raises UsageError for an unknown size."""
    model = resolve_size(size)
    learning_rate, warmup_steps, num_micro_batches = RECIPES[size]
    return DTConfig(
        size=size,
        model=model,
        optim=OptimConfig(learning_rate=learning_rate, warmup_steps=warmup_steps),
        train=TrainConfig(num_micro_batches=num_micro_batches),
    )


def bc() -> BCConfig:
    """Return behaviour cloning of the best tenth of the data."""
    base = BCConfig(size="mlp", data=DataConfig(top_fraction=0.1))
    return replace(base, train=replace(base.train, batch_size=256))


# ReBRAC's weights of the distance to the data, in the policy's loss and in the critic's target, which were tuned for
# each of D4RL's data (arXiv 2305.09836); for all others the one pair that does best on all of them together.
REBRAC_WEIGHTS = {
    ("hopper", "random"): (0.001, 0.01),
    ("hopper", "medium"): (0.01, 0.01),
    ("hopper", "medium-replay"): (0.05, 0.5),
    ("hopper", "medium-expert"): (0.1, 0.01),
    ("hopper", "expert"): (0.1, 0.1),
    ("hopper", "full-replay"): (0.01, 0.01),
    ("halfcheetah", "random"): (0.001, 0.1),
    ("halfcheetah", "medium"): (0.001, 0.01),
    ("halfcheetah", "medium-replay"): (0.01, 0.001),
    ("halfcheetah", "medium-expert"): (0.01, 0.1),
    ("halfcheetah", "expert"): (0.01, 0.01),
    ("halfcheetah", "full-replay"): (0.001, 0.1),
    ("walker2d", "random"): (0.01, 0.0),
    ("walker2d", "medium"): (0.05, 0.1),
    ("walker2d", "medium-replay"): (0.05, 0.01),
    ("walker2d", "medium-expert"): (0.01, 0.01),
    ("walker2d", "expert"): (0.01, 0.5),
    ("walker2d", "full-replay"): (0.01, 0.01),
}
REBRAC_DEFAULT = (0.05, 0.01)
CRITIC_RECIPES = ("td3bc", "rebrac")


def td3bc(recipe: str = "td3bc", dataset: str = "") -> TD3BCConfig:
    """Return TD3+BC, or ReBRAC with its published weights for a D4RL dataset, as published but for the updates.

    The papers take a million. Raises UsageError for an unknown recipe.
    """
    if recipe not in CRITIC_RECIPES:
        hint = suggest(recipe, CRITIC_RECIPES, otherwise="there are " + " and ".join(CRITIC_RECIPES))
        raise UsageError(f"there is no recipe {recipe}", hint=hint)
    is_rebrac = recipe == "rebrac"
    base = TD3BCConfig(
        size=recipe,
        optim=OptimConfig(
            learning_rate=1e-3 if is_rebrac else 3e-4,
            weight_decay=0,
            warmup_steps=0,
            schedule="constant",
            gradient_clip=0,
        ),
        train=TrainConfig(steps=100_000, batch_size=1024 if is_rebrac else 256, precision="float32", log_every=500),
        eval=TargetEvalConfig(every=5000),
        checkpoint=CheckpointConfig(every=5000),
    )
    if not is_rebrac:
        return base
    name = re.fullmatch(r"d4rl/([a-z0-9]+)-([a-z-]+?)(-v\d)?", dataset.lower())
    bc_weight, target_penalty = REBRAC_WEIGHTS.get((name[1], name[2]) if name else ("", ""), REBRAC_DEFAULT)
    return replace(
        base,
        model=ActorCriticConfig(num_layers=3, critic_norm=True, small_start=True, observations="raw"),
        critic=CriticConfig(
            actor_value="smaller", q_weight=1, bc_weight=bc_weight, bc_reduction="sum", target_penalty=target_penalty
        ),
    )


# The shape for a CPU, where short windows and plain layers are fastest.
TINY = StochasticModelConfig(
    backbone="gpt2",
    embed_dim=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=4,
    mlp_ratio=4.0,
    activation="relu",
    context_length=5,
    action_clip=EASY_ACTION_CLIP,
)
# That of the Online Decision Transformer's paper (arXiv 2202.05607).
PAPER = StochasticModelConfig(
    backbone="gpt2",
    embed_dim=512,
    num_layers=4,
    num_heads=4,
    num_kv_heads=4,
    mlp_ratio=4.0,
    activation="relu",
    dropout=0.1,
)
# The paper's recipes by what a dataset's name contains: updates, learning rate, weight decay, evaluation target.
PAPER_RECIPES = {
    ("hopper", "medium-replay"): (5_000, 2e-3, 1e-4, 3600.0),
    ("hopper", "medium"): (5_000, 1e-4, 5e-4, 3600.0),
    ("walker2d", "medium"): (10_000, 1e-3, 1e-3, 5000.0),
    ("halfcheetah", "medium"): (5_000, 1e-4, 5e-4, 6000.0),
    ("ant", "medium-replay"): (5_000, 1e-4, 5e-4, 6000.0),
    ("ant", "medium"): (10_000, 1e-4, 5e-4, 6000.0),
}


def odt(size: str = "tiny", dataset: str = "") -> ODTConfig:
    """Return the Online Decision Transformer of a size: `tiny` for a CPU, `paper`, or one of SIZES.

    `paper` is the published recipe, by the environment and level in the dataset's name (default: Hopper medium's).
    Its targets are for D4RL's data only. Raises UsageError for an unknown size.
    """
    if size == "paper":
        return paper_odt(dataset)
    if size == "tiny":
        model, num_micro_batches = TINY, 1
    else:
        shape = vars(resolve_size(size)) | {"positions": "none", "rotary": False}
        model, num_micro_batches = StochasticModelConfig(**shape, action_clip=EASY_ACTION_CLIP), RECIPES[size][2]
    learning_rate, steps = (3e-3, 1000) if size == "tiny" else (1e-3, 3000)
    optim = OptimConfig(optimizer="lamb", learning_rate=learning_rate, weight_decay=5e-4, warmup_steps=200)
    train = TrainConfig(steps=steps, batch_size=256, num_micro_batches=num_micro_batches)
    return ODTConfig(size=size, model=model, optim=optim, train=train)


def paper_odt(dataset: str) -> ODTConfig:
    """Return the published recipe for a dataset."""
    words = set(re.split(r"[^a-z0-9]+", dataset.lower()))
    fitting = [key for key in PAPER_RECIPES if words.issuperset("-".join(key).split("-"))]
    chosen = fitting[0] if fitting else ("hopper", "medium")
    steps, learning_rate, weight_decay, target = PAPER_RECIPES[chosen]
    return ODTConfig(
        size="paper",
        data=DataConfig(return_scale=1000.0),
        model=replace(PAPER, positions="timestep") if chosen == ("ant", "medium") else PAPER,
        optim=OptimConfig(
            optimizer="lamb",
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup_steps=10_000,
            schedule="constant",
        ),
        train=TrainConfig(steps=steps, batch_size=256),
        eval=TargetEvalConfig(targets=(target,) if fitting and dataset.startswith("d4rl/") else ()),
    )


def finetune(parent: ODTConfig | FinetuneConfig) -> FinetuneConfig:
    """Return what finetuning takes over from its parent's configuration."""
    update = {name: value for name, value in vars(parent.train).items() if name in UpdateConfig.__dataclass_fields__}
    optim = parent.optim
    if optim.schedule == "cosine":  # a rate that fell falls again, from a third of its peak
        optim = replace(optim, learning_rate=optim.learning_rate / 3)
    online = OnlineConfig()
    if parent.size == "paper":
        online = OnlineConfig(environment_steps=200_000, rollouts=1, updates_per_rollout=300, buffer_size=1000)
    return FinetuneConfig(
        task=parent.task,
        size=parent.size,
        data=parent.data,
        model=parent.model,
        entropy=parent.entropy,
        optim=optim,
        train=UpdateConfig(**update),
        eval=replace(parent.eval, every=10_000),  # environment steps
        checkpoint=parent.checkpoint,
        log=parent.log,
        online=online,
    )


# What the original sets in tasks other than DeepMind Control's (its envs/mujoco.py, and its planner and replay where
# episodes end by themselves). `planner.termination=soft` was better where both were tried: docs/settings.md.
TDMPC2_GYMNASIUM = {
    "update.temporal_decay": 0.7,
    "train.discount_max": 0.99,
    "train.replay": "episodes",
    "planner.termination": "cut",
}


def tdmpc2(size: str = "5", task: str = "") -> TDMPC2Config:
    """Return the TD-MPC2 agent of a size in millions of parameters, as published for a task, by default dog-run.

    Raises UsageError for an unknown size.
    """
    config = TDMPC2Config(
        size=size,
        task=task,
        model=resolve_world_model_size(size),
        eval=EvalConfig(every=20_000),
        checkpoint=CheckpointConfig(every=5_000),
    )
    return config.replace(TDMPC2_GYMNASIUM) if task and proper_id(task) not in CONTROL_TASKS else config


def with_task(config: TDMPC2Config) -> TDMPC2Config:
    """Return the configuration with its environment known.

    Raises:
        UsageError: no task, or none of that name that gq can use.
    """
    if isinstance(config.made, Task) and config.made.id == config.task:
        return config
    if not config.request.id:
        raise UsageError("TD-MPC2 needs a task", hint="for example --task cartpole-swingup, or --task HalfCheetah-v5")
    return config.made_for(settle(config.request))

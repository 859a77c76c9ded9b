"""One configuration per run: frozen dataclasses, resolved as preset < file < --set and flags, validated once."""

import dataclasses
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from annotated_types import Ge, Gt, Le, Lt

from gq.envs.specs import EnvironmentRequest
from gq.envs.tasks import Task, resolve_task
from gq.errors import UsageError, suggest
from gq.models.config import Context, Count, MLPConfig, ModelConfig, StochasticModelConfig
from gq.models.critic_config import ActorCriticConfig, CriticConfig
from gq.models.world_config import PlannerConfig, WorldModelConfig, WorldUpdateConfig
from gq.settings import assign, check_key, flatten, is_flag_for_number, toml_value

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Natural = Annotated[int, Ge(0), Lt(2**63)]
NonNegative = Annotated[float, Ge(0), Lt(math.inf)]
Positive = Annotated[float, Gt(0), Lt(math.inf)]
Finite = Annotated[float, Gt(-math.inf), Lt(math.inf)]
Seed = Annotated[int, Ge(0), Lt(2**63)]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to learn from."""

    dataset: str = ""  # id or path
    mode: Literal["normal", "delayed"] = "normal"  # delayed: all reward counts as given at the episode's end
    top_fraction: Annotated[float, Gt(0), Le(1)] = 1.0  # keep the episodes of highest return, by share of rows
    return_scale: Positive | Literal["auto"] = "auto"  # returns-to-go are divided by this; auto: by their size
    placement: Literal["auto", "device", "stream"] = "auto"  # stream: windows are fetched from host memory or the file


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its schedule."""

    optimizer: Literal["adamw", "lamb"] = "adamw"
    learning_rate: Positive = 1e-3
    weight_decay: NonNegative = 1e-4
    warmup_steps: Natural = 500  # linear
    schedule: Literal["cosine", "constant"] = "cosine"  # after the warm-up; cosine ends at a tenth at train.steps
    gradient_clip: NonNegative = 0.25  # global norm; 0 switches off


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """What all training has: batches, a seed, a device."""

    batch_size: Count = 64  # windows, or pieces of episodes, per update
    seed: Seed = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1, ...
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    log_every: Count = 50  # updates
    # Updates, on a GPU: capture: each is replayed as one CUDA graph; full: and compiled; auto: full where that pays.
    compile: Literal["auto", "off", "capture", "full"] = "auto"


@dataclass(frozen=True, kw_only=True)
class UpdateConfig(ComputeConfig):
    """The same, for transformers and networks that clone behaviour."""

    num_micro_batches: Count = 1  # a batch is computed in so many parts, to save memory


@dataclass(frozen=True, kw_only=True)
class TrainConfig(UpdateConfig):
    """The same, with a number of updates."""

    steps: Count = 4000
    checkpoint_activations: bool = False  # the backward pass computes each block again: less memory, more time
    parallel: Literal["auto", "replicated", "sharded"] = "auto"  # of several processes, what each holds of the model


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation while training; its seeds are apart from those of `gq eval`."""

    every: Natural = 1000  # updates; environment steps when finetuning, decisions of TD-MPC2; 0 switches off
    num_episodes: Count = 10  # per target, where there are targets


@dataclass(frozen=True, kw_only=True)
class TargetEvalConfig(EvalConfig):
    """The same, for policies with a target return."""

    targets: tuple[Finite, ...] = ()  # empty: the dataset's 50th, 90th and 99th return percentile
    # A transformer's, of K steps: always the last K; or growing to K, then again from the last K / 2, which is faster.
    context: Context = "sliding"


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, and how many to keep beside the best."""

    every: Natural = 500  # updates; 0: only at the end and when stopped
    keep: Count = 2


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What a run is called, and trackers, which get copies of metrics.jsonl; none can stop a run."""

    tags: tuple[str, ...] = ()
    note: str = ""
    sweep: str = ""  # that it is a member of
    tensorboard: bool = False
    wandb: bool = False
    wandb_project: str = "gq"
    trackio: bool = False
    trackio_project: str = "gq"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a run. The subclasses fix the algorithm and its model."""

    algo: str
    task: str = ""  # Gymnasium id or DeepMind Control name; empty: from the dataset
    size: str = "custom"
    train: ComputeConfig = field(default_factory=ComputeConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    # [environment] of config.toml: the whole of it once it is known, before that what is asked for.
    made: Task | EnvironmentRequest | None = None

    @property
    def environment(self) -> Task:
        """The run's own environment; of runs without it on record the task that `task` names.

        Raises:
            UsageError: there is none.
        """
        if isinstance(self.made, Task) and self.made.id == self.task:
            return self.made
        return resolve_task(self.task)

    @property
    def request(self) -> EnvironmentRequest:
        """What is asked of the environment."""
        asked = self.made if isinstance(self.made, EnvironmentRequest) else EnvironmentRequest()
        return dataclasses.replace(asked, id=self.task or asked.id)

    def made_for(self, task: Task) -> Self:
        """Return this configuration with its environment known."""
        return dataclasses.replace(self, task=task.id, made=task)

    @property
    def dataset(self) -> str:
        """The dataset that is learnt from, if there is one."""
        return ""

    @property
    def targets(self) -> tuple[float, ...]:
        """The returns that a policy is asked for in an evaluation; one 0 where it cannot be asked."""
        return (0.0,)

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values."""
        tree = dataclasses.asdict(self)
        if made := tree.pop("made"):
            tree["environment"] = {key: value for key, value in made.items() if value is not None}
        return tree

    def replace(self, values: Mapping[str, Any], origin: str = "") -> Self:
        """Return this configuration with dotted keys replaced and everything validated again."""
        return with_settings(self, values, origin)


@dataclass(frozen=True, kw_only=True)
class DataRunConfig(RunConfig):
    """Everything that determines a run that learns from a dataset."""

    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: UpdateConfig = field(default_factory=UpdateConfig)
    eval: TargetEvalConfig = field(default_factory=TargetEvalConfig)

    @property
    def dataset(self) -> str:
        """The dataset that is learnt from."""
        return self.data.dataset

    @property
    def targets(self) -> tuple[float, ...]:
        """The returns that a policy is asked for in an evaluation."""
        return self.eval.targets


@dataclass(frozen=True, kw_only=True)
class DTConfig(DataRunConfig):
    """A Decision Transformer."""

    algo: Literal["dt"] = "dt"
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True, kw_only=True)
class BCConfig(DataRunConfig):
    """Behaviour cloning of the best trajectories."""

    algo: Literal["bc"] = "bc"
    model: MLPConfig = field(default_factory=MLPConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True, kw_only=True)
class TD3BCConfig(DataRunConfig):
    """TD3+BC or ReBRAC: a critic, and a policy that stays near the data."""

    algo: Literal["td3bc"] = "td3bc"
    model: ActorCriticConfig = field(default_factory=ActorCriticConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True, kw_only=True)
class EntropyConfig:
    """The constraint that the policy's entropy, in the mean over steps, is at least a target; in nats."""

    mode: Literal["dual", "fixed", "off"] = "dual"  # dual: the temperature learns; fixed: it stays; off: no such term
    target: Finite = -1.0  # per action dimension, of actions scaled to [-1, 1]
    temperature: Positive = 0.1  # weight of the entropy in the loss, at the start
    learning_rate: Positive = 1e-4  # of the temperature's logarithm
    temperature_min: Positive = 1e-4
    temperature_max: Positive = 10.0

    def problem(self) -> str | None:
        """Return what makes these bounds impossible, or None."""
        if not self.temperature_min <= self.temperature <= self.temperature_max:
            return f"entropy.temperature {self.temperature} is not between temperature_min and temperature_max"
        return None


@dataclass(frozen=True, kw_only=True)
class ODTConfig(DataRunConfig):
    """An Online Decision Transformer, learning from a dataset."""

    algo: Literal["odt"] = "odt"
    model: StochasticModelConfig = field(default_factory=StochasticModelConfig)
    entropy: EntropyConfig = field(default_factory=EntropyConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """Finetuning: episodes of the policy, a buffer of whole trajectories, updates."""

    parent: str = ""  # the run that is finetuned
    checkpoint: str = ""  # of that run
    environment_steps: Natural = 60_000  # stop after the episode that reaches so many; 0: no limit
    iterations: Natural = 0  # stop after so many; 0: no limit
    minutes: NonNegative = 0.0  # stop after so long; 0: no limit
    rollouts: Count = 4  # episodes in an iteration, all at once
    updates_per_rollout: Count = 100
    targets: tuple[Finite, ...] = ()  # returns asked of the episodes in turn; empty: from the evaluation's highest
    buffer_size: Count = 64  # trajectories; a new one takes the place of the oldest
    buffer_start: Literal["top", "all", "none"] = "top"  # the dataset's best trajectories, all of them, or none
    optimizer_state: Literal["carry", "reset"] = "carry"  # moments, schedule and temperature of the parent
    collapse: Annotated[float, Ge(0), Lt(1)] = 0.0  # stop when less than this share of the first return is left
    final_episodes: Natural = 20  # per target, to compare start and end on fresh seeds; 0: no comparison


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(DataRunConfig):
    """An Online Decision Transformer, learning from its own episodes."""

    algo: Literal["finetune"] = "finetune"
    model: StochasticModelConfig = field(default_factory=StochasticModelConfig)
    entropy: EntropyConfig = field(default_factory=EntropyConfig)
    online: OnlineConfig = field(default_factory=OnlineConfig)


@dataclass(frozen=True, kw_only=True)
class InteractionConfig(ComputeConfig):
    """How TD-MPC2 acts and learns by turns."""

    batch_size: Count = 256
    decisions: Count = 500_000  # of all environments; times the task's action repeat, that many frames
    num_environments: Count = 1
    seed_decisions: Natural = 0  # uniform at first; 0: five episodes, at least 1000
    updates_per_decision: Positive = 1.0  # those for the first, uniform decisions are made up for at once
    buffer_size: Count = 1_000_000  # newest decisions that batches are drawn from
    # steps: all pieces are drawn equally often, each as soon as it is there; episodes: as the original, an episode that
    # has ended, then a piece of it.
    replay: Literal["steps", "episodes"] = "steps"
    discount: Annotated[float, Ge(0), Lt(1)] = 0.0  # per decision; 0: from the length of an episode
    discount_max: Annotated[float, Ge(0.95), Lt(1)] = 0.995  # that this length gives at most


@dataclass(frozen=True, kw_only=True)
class TDMPC2Config(RunConfig):
    """A TD-MPC2 agent, learning by planning with the world model that it learns."""

    algo: Literal["tdmpc2"] = "tdmpc2"
    model: WorldModelConfig = field(default_factory=WorldModelConfig)
    update: WorldUpdateConfig = field(default_factory=WorldUpdateConfig)
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    train: InteractionConfig = field(default_factory=InteractionConfig)


ENVIRONMENT = "environment."  # what its keys begin with
FOUND_OUT = set(Task.__dataclass_fields__) - set(
    EnvironmentRequest.__dataclass_fields__
)  # in another run's config.toml
AnyConfig = TypeVar("AnyConfig", bound="DataclassInstance")  # with defaults, of values and other such dataclasses
OfflineConfig = DTConfig | BCConfig | ODTConfig | TD3BCConfig
TransformerConfig = DTConfig | ODTConfig | FinetuneConfig
TrainedConfig = OfflineConfig | FinetuneConfig | TDMPC2Config
CONFIGS: dict[str, type[TrainedConfig]] = {
    "dt": DTConfig,
    "bc": BCConfig,
    "odt": ODTConfig,
    "td3bc": TD3BCConfig,
    "finetune": FinetuneConfig,
    "tdmpc2": TDMPC2Config,
}


def with_settings(config: AnyConfig, values: Mapping[str, Any], origin: str = "") -> AnyConfig:
    """Return a configuration with dotted keys replaced and everything validated again.

    Args:
        origin: what messages about unknown keys begin with.

    Raises:
        UsageError: an unknown key, a wrong type or a value out of range.
    """
    tree = config.to_dict() if isinstance(config, RunConfig) else dataclasses.asdict(config)
    environment = tree.pop("environment", {})
    if values.get("task", environment.get("id")) != environment.get("id"):
        environment = {}
    for key, value in values.items():
        if key.startswith(ENVIRONMENT):
            if key.removeprefix(ENVIRONMENT) not in FOUND_OUT:
                environment = with_request(environment, key.removeprefix(ENVIRONMENT), value)
        else:
            assign(tree, key, value, origin)
    return validate(type(config), tree | ({"environment": environment} if environment else {}))


def with_request(environment: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return [environment] with one thing asked for; what was found out about another environment goes."""
    asked = {name: value for name, value in environment.items() if name in EnvironmentRequest.__dataclass_fields__}
    name, _, argument = key.partition(".")
    if argument:  # kwargs.gravity of a file
        value = {**asked.get(name, {}), argument: value}
    return asked | {name: value}


def validate(kind: type[AnyConfig], tree: Mapping[str, Any]) -> AnyConfig:
    """Build a configuration from nested values.

    Raises:
        UsageError: an unknown key, a wrong type or a value out of range, named by its dotted key.
    """
    import pydantic

    tree = dict(tree)
    environment = tree.pop("environment", None)
    usual = flatten(dataclasses.asdict(kind()))
    usual.pop("made", None)
    for key, value in flatten(tree).items():
        check_key(usual, key, "")
        if is_flag_for_number(value, usual[key]):
            message = f"{key} = {toml_value(value)}: a number is wanted, not true or false"
            raise UsageError(message, hint=f"for example --set {key}={example(kind, key)}")
    try:
        config: AnyConfig = adapter_of(kind).validate_python(tree)
        if environment:
            config = dataclasses.replace(config, made=read_environment(environment))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(part for part in first["loc"] if isinstance(part, str))
        message = f"{key} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
        raise UsageError(message, hint=f"for example --set {key}={example(kind, key)}") from None
    sections = [getattr(config, name, None) for name in ("model", "entropy", "planner")]
    problems = [section.problem() for section in sections if section]
    if problem := next(filter(None, problems), None):
        raise UsageError(problem, hint="change one of the two with --set")
    return config


def read_environment(section: Mapping[str, Any]) -> Task | EnvironmentRequest:
    """Return [environment] of config.toml: a task where it is all there, else what is asked for.

    Raises:
        pydantic.ValidationError: a value is wrong.
        UsageError: an unknown key.
    """
    kind: type[Task | EnvironmentRequest] = Task if "observation_dim" in section else EnvironmentRequest
    for key in section:
        if key not in kind.__dataclass_fields__:
            known = list(EnvironmentRequest.__dataclass_fields__)
            hint = suggest(key, known, otherwise=f"there are {', '.join(known)}")
            raise UsageError(f"there is no setting {ENVIRONMENT}{key}", hint=hint)
    made: Task | EnvironmentRequest = adapter_of(kind).validate_python(section)  # type: ignore[arg-type]
    return made


def environment_of(tree: Mapping[str, Any]) -> Task | None:
    """Return the environment of a config.toml of any version; None where gq knows none."""
    with suppress(UsageError, ValueError):
        made = read_environment(tree["environment"]) if "environment" in tree else None
        return made if isinstance(made, Task) else resolve_task(str(tree.get("task", "")))
    return None


@cache
def adapter_of(kind: Any) -> Any:
    """Return what validates a kind of configuration; making it takes longer than using it."""
    import pydantic

    return pydantic.TypeAdapter(kind)


def example(kind: type[Any], key: str) -> str:
    """Return the default of a key as it would be typed after --set."""
    value = flatten(dataclasses.asdict(kind())).get(key, "")
    return toml_value(value).strip('"')


def to_toml(config: RunConfig) -> str:
    """Return the configuration as TOML that `read_config_file` and `validate` turn into an equal one."""
    tree = config.to_dict()
    lines = [f"{key} = {toml_value(value)}" for key, value in tree.items() if not isinstance(value, dict)]
    for section, values in tree.items():
        if isinstance(values, dict):
            lines += ["", f"[{section}]", *(f"{key} = {toml_value(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"

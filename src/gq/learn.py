"""Training by name: load the data that a configuration names, complete it with what follows from them, train."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gq import presets
from gq.config import DataRunConfig, FinetuneConfig, ODTConfig, TrainedConfig
from gq.data.returns import observed_targets, online_target, suggested_scale
from gq.data.trajectories import Trajectories
from gq.datasets.loading import canonical_name, load_dataset
from gq.envs.tasks import Task
from gq.errors import UsageError
from gq.paths import last_dataset, read_json
from gq.runs.checkpoint import choose_checkpoint
from gq.runs.folder import read_config, refuse_module
from gq.runs.metrics import Listener
from gq.settings import flatten

if TYPE_CHECKING:
    from gq.training.offline import TrainResult
    from gq.training.online import FinetuneResult

FREE_SETTINGS = ("model.dropout", "model.acting_context", "model.action_clip")  # fit any weights


def train(
    config: DataRunConfig, out: Path | None = None, *, resume: bool = False, listener: Listener | None = None
) -> "TrainResult":
    """Train on the dataset that a configuration names; see `gq.training.offline.train`."""
    from gq.training import offline

    return offline.train(*prepare(config), out, resume=resume, listener=listener)


def prepare(config: DataRunConfig) -> tuple[DataRunConfig, Trajectories]:
    """Load the dataset and complete the configuration with what follows from it: task and targets.

    Raises:
        UsageError, DataError: no such dataset, a file that must not be trained on, or another task's dimensions.
    """
    name = config.data.dataset or last_dataset()
    known = config.made if isinstance(config.made, Task) and config.made.id == config.task else None
    trajectories = load_dataset(name, environment=known or config.request)
    assert trajectories.environment
    data = replace(config.data, dataset=canonical_name(name))
    observed = observed_targets(trajectories.returns)
    distinct = tuple(dict.fromkeys(value for name, value in observed.items() if name != "max"))
    targets = config.eval.targets or distinct[-1 if config.algo == "odt" else 0 :]
    if data.return_scale == "auto":
        data = replace(data, return_scale=suggested_scale(trajectories.returns))
    config = config.made_for(trajectories.environment)
    return replace(config, data=data, eval=replace(config.eval, targets=targets)), trajectories


def prepare_finetuning(
    parent: Path, checkpoint: str | Path = "best", given: Mapping[str, Any] | None = None
) -> tuple[FinetuneConfig, Trajectories]:
    """Return the configuration of a new run that goes on from a parent's checkpoint, and the parent's dataset.

    Args:
        given: settings by dotted key; all others come from the parent.

    Raises:
        UsageError: the parent is no Online Decision Transformer, or a setting is wrong or does not fit its weights.
        DataError, GqError: its dataset is not there any more, or has changed.
    """
    from gq.training.finetuning import refuse_other_data

    stored = read_config(parent)
    refuse_module(parent, stored)
    if not isinstance(stored, ODTConfig | FinetuneConfig):
        raise UsageError(f"{parent.name} is a {stored.algo} run", hint="finetune one of gq train odt")
    folder = checkpoint if isinstance(checkpoint, Path) else choose_checkpoint(parent, checkpoint)
    config = presets.finetune(stored).replace(given or {})
    refuse_other_weights(stored, config)
    online = replace(config.online, parent=str(parent.resolve()), checkpoint=folder.name)
    config, trajectories = complete(replace(config, online=online))
    refuse_other_data(config, read_json(folder / "state.json"), trajectories.sha256())
    return config, trajectories


def refuse_other_weights(parent: TrainedConfig, config: FinetuneConfig) -> None:
    """Raise UsageError for a setting that comes with the parent's weights and is not the parent's."""
    before = flatten(parent.to_dict())
    for key, value in flatten(config.to_dict()).items():
        is_fixed = key in ("task", "data.return_scale") or (key.startswith("model.") and key not in FREE_SETTINGS)
        if is_fixed and value != before[key]:
            message = f"{key} = {value} does not fit the parent's weights, which have {before[key]}"
            raise UsageError(message, hint=f"leave it, or pretrain with it: gq train odt --set {key}={value}")


def complete(config: FinetuneConfig) -> tuple[FinetuneConfig, Trajectories]:
    """Load the dataset and resolve what follows from it.

    Raises:
        UsageError: there is nothing that would end the run.
    """
    from gq.training.finetuning import random_return

    online = config.online
    if not (online.environment_steps or online.iterations or online.minutes):
        hint = "give one of --steps, --iterations and --minutes"
        raise UsageError("nothing would ever end this run", hint=hint)
    trajectories = load_dataset(config.data.dataset, environment=config.environment)
    target, low = max(config.eval.targets), random_return(config, trajectories)
    published = (low + 2 * (target - low),) if config.size == "paper" else ()
    targets = online.targets or published or (online_target(target, low, trajectories.returns),)
    data = replace(config.data, dataset=canonical_name(config.data.dataset))
    return replace(config, data=data, online=replace(online, targets=targets)), trajectories


def finetune(
    config: FinetuneConfig,
    out: Path | None = None,
    *,
    resume: bool = False,
    listener: Listener | None = None,
    trajectories: Trajectories | None = None,
) -> "FinetuneResult":
    """Finetune on the dataset that a configuration names; see `gq.training.online.finetune`.

    Args:
        config: from `prepare_finetuning`, or, with `resume`, the run's own.
        trajectories: the parent's dataset, where the caller has it already.
    """
    from gq.training import online

    if trajectories is None:
        config, trajectories = complete(config)
    return online.finetune(config, trajectories, out, resume=resume, listener=listener)

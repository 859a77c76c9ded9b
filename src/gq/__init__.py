"""gq: train, evaluate and render policies for MuJoCo: sequence models and world models.

Everything the command line does is a function here. Names are imported when they are first used, so `import gq`
loads neither torch nor MuJoCo.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gq import presets as presets
    from gq.collecting import CollectionRequest as CollectionRequest
    from gq.collecting import collect as collect
    from gq.costs.transformers import report as params  # noqa: F401
    from gq.datasets.loading import download as download
    from gq.datasets.loading import load_dataset as load_dataset
    from gq.errors import GqError as GqError
    from gq.learn import finetune as finetune
    from gq.learn import prepare_finetuning as prepare_finetuning
    from gq.learn import train as train
    from gq.paths import find_run as find_run
    from gq.policies.loading import Acting as Acting
    from gq.policies.loading import load_run as load_run
    from gq.rendering import VideoOptions as VideoOptions
    from gq.rendering import render as render
    from gq.repair.repair import repair as repair
    from gq.results.compare import compare_runs as compare  # noqa: F401
    from gq.results.evaluate import evaluate as evaluate
    from gq.results.report import report as report
    from gq.rollouts.episodes import EpisodeRequest as EpisodeRequest
    from gq.speculation.distil import distill as distill
    from gq.speculation.rounds import DistillSettings as DistillSettings
    from gq.training.world import train_world_model as train_world_model

_WHERE = {
    "Acting": ("gq.policies.loading", "Acting"),
    "CollectionRequest": ("gq.collecting", "CollectionRequest"),
    "DistillSettings": ("gq.speculation.rounds", "DistillSettings"),
    "EpisodeRequest": ("gq.rollouts.episodes", "EpisodeRequest"),
    "GqError": ("gq.errors", "GqError"),
    "VideoOptions": ("gq.rendering", "VideoOptions"),
    "compare": ("gq.results.compare", "compare_runs"),
    "collect": ("gq.collecting", "collect"),
    "distill": ("gq.speculation.distil", "distill"),
    "download": ("gq.datasets.loading", "download"),
    "evaluate": ("gq.results.evaluate", "evaluate"),
    "find_run": ("gq.paths", "find_run"),
    "finetune": ("gq.learn", "finetune"),
    "load_dataset": ("gq.datasets.loading", "load_dataset"),
    "load_run": ("gq.policies.loading", "load_run"),
    "params": ("gq.costs.transformers", "report"),
    "prepare_finetuning": ("gq.learn", "prepare_finetuning"),
    "presets": ("gq.presets", None),
    "repair": ("gq.repair.repair", "repair"),
    "report": ("gq.results.report", "report"),
    "render": ("gq.rendering", "render"),
    "train": ("gq.learn", "train"),
    "train_world_model": ("gq.training.world", "train_world_model"),
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'gq' has no attribute {name!r}")
    from gq import threads

    threads.prepare()
    module, attribute = _WHERE[name]
    value = import_module(module)
    return getattr(value, attribute) if attribute else value

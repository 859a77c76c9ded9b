"""gq: train, evaluate and render policies for MuJoCo: sequence models and world models.

Everything the command line does is a function here. Names are imported when they are first used, so `import gq`
loads neither torch nor MuJoCo.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gq import presets as presets
    from gq.collecting import collect as collect
    from gq.data.datasets import download as download
    from gq.data.datasets import load_dataset as load_dataset
    from gq.engine.building import load_run as load_run
    from gq.engine.comparing import compare_runs as compare  # noqa: F401
    from gq.engine.distill_settings import DistillSettings as DistillSettings
    from gq.engine.distilling import distill as distill
    from gq.engine.evaluate import evaluate as evaluate
    from gq.engine.finetuning import finetune as finetune
    from gq.engine.finetuning import prepare_finetuning as prepare_finetuning
    from gq.engine.offline import train as train
    from gq.engine.world_training import train_world_model as train_world_model
    from gq.errors import GqError as GqError
    from gq.parameters import report as params  # noqa: F401
    from gq.paths import find_run as find_run
    from gq.rendering import render as render
    from gq.repairing.repair import repair as repair
    from gq.reporting.report import report as report

_WHERE = {
    "DistillSettings": ("gq.engine.distill_settings", "DistillSettings"),
    "GqError": ("gq.errors", "GqError"),
    "compare": ("gq.engine.comparing", "compare_runs"),
    "collect": ("gq.collecting", "collect"),
    "distill": ("gq.engine.distilling", "distill"),
    "download": ("gq.data.datasets", "download"),
    "evaluate": ("gq.engine.evaluate", "evaluate"),
    "find_run": ("gq.paths", "find_run"),
    "finetune": ("gq.engine.finetuning", "finetune"),
    "load_dataset": ("gq.data.datasets", "load_dataset"),
    "load_run": ("gq.engine.building", "load_run"),
    "params": ("gq.parameters", "report"),
    "prepare_finetuning": ("gq.engine.finetuning", "prepare_finetuning"),
    "presets": ("gq.presets", None),
    "repair": ("gq.repairing.repair", "repair"),
    "report": ("gq.reporting.report", "report"),
    "render": ("gq.rendering", "render"),
    "train": ("gq.engine.offline", "train"),
    "train_world_model": ("gq.engine.world_training", "train_world_model"),
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

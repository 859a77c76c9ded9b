"""Named recipes: one function per algorithm, the rest derived from the size."""

from dataclasses import replace

from gq.config import BCConfig, DataConfig, DTConfig, ODTConfig, OptimConfig, TrainConfig
from gq.models.config import StochasticModelConfig
from gq.models.sizes import resolve_size

# Learning rate, warm-up steps, parts a batch is computed in. Larger models want smaller steps and more memory.
RECIPES = {
    "1m": (1e-3, 500, 1),
    "13m": (6e-4, 500, 1),
    "0.1b": (3e-4, 1000, 2),
    "0.6b": (1e-4, 1000, 4),
    "1.9b": (1e-4, 1000, 8),
}


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


TINY = StochasticModelConfig(embed_dim=64, num_layers=3, num_heads=4, num_kv_heads=4, context_length=10)


def odt(size: str = "1m") -> ODTConfig:
    """Return the Online Decision Transformer of a size: `tiny`, for a CPU, or one of SIZES."""
    if size == "tiny":
        model = TINY
    else:
        model = StochasticModelConfig(**vars(resolve_size(size)) | {"positions": "none", "rotary": False})
    optim = OptimConfig(optimizer="lamb", learning_rate=1e-3, weight_decay=5e-4, warmup_steps=500, schedule="constant")
    return ODTConfig(size=size, model=model, optim=optim, train=TrainConfig(steps=2000, batch_size=256))

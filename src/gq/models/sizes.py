"""Named model sizes: what each is called is what it counts (for Humanoid), see `gq params`."""

from gq.errors import UsageError, suggest
from gq.models.config import ModelConfig

SIZES = {
    "1m": ModelConfig(embed_dim=128, num_layers=3, num_heads=4, num_kv_heads=2, mlp_ratio=3.0, dropout=0.0),
    "13m": ModelConfig(embed_dim=512, num_layers=4, num_heads=8, num_kv_heads=4, mlp_ratio=3.0, dropout=0.0),
    "0.1b": ModelConfig(embed_dim=768, num_layers=12, num_heads=12, num_kv_heads=4, mlp_ratio=4.0, dropout=0.0),
    "0.6b": ModelConfig(embed_dim=1536, num_layers=24, num_heads=12, num_kv_heads=6, mlp_ratio=8 / 3, dropout=0.0),
    # The widely copied recipe that is advertised as 0.6B.
    "1.9b": ModelConfig(embed_dim=2048, num_layers=24, num_heads=16, num_kv_heads=8, mlp_ratio=5.4, dropout=0.0),
}


def resolve_size(name: str) -> ModelConfig:
    """Return the shape of a named size.

    Raises:
        UsageError: no such size.
    """
    if config := SIZES.get(name):
        return config
    hint = suggest(name, SIZES, otherwise="sizes are " + ", ".join(SIZES))
    raise UsageError(f"there is no size {name}", hint=hint)

"""What a Decision Transformer costs, in closed form: parameters, matrix products, memory, and data enough to feed it.

H embed_dim, N query heads, G key/value heads, D head width, F mlp_dim, B windows of K steps, T = 3K tokens, or 2K where
the return conditions the output. The last block computes only the tokens that carry the loss, one a step.
"""

from dataclasses import dataclass

from gq.models.config import SIZES, ModelConfig, StochasticModelConfig

TOKENS_PER_STEP = 3
FLOAT32_BYTES = 4
BFLOAT16_BYTES = 2
INT64_BYTES = 8
MASK_BYTES = 2  # of gq's dropout on a CPU
FEW_DROPPED = 1 / 32  # up to this rate it keeps the places instead of a mask (gq.models.kernels)
TRAINED_BYTES = 16  # per parameter: float32 weight, gradient and the two moments of AdamW
FEWEST_TOKENS_PER_PARAMETER = 0.1  # the original model on its smallest dataset, medium-replay, has about 1


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """In which numbers, and by whose kernels, a model is computed: torch's, or on a CPU those of gq.models.kernels."""

    bfloat16: bool  # of matrix products; the residual stream and weights are float32 always
    on_cpu: bool

    @property
    def element_bytes(self) -> int:
        """Size of what matrix products take and give."""
        return BFLOAT16_BYTES if self.bfloat16 else FLOAT32_BYTES


def parameter_formula(config: ModelConfig, observation_dim: int, action_dim: int) -> int:
    """Parameters of a DecisionTransformer, or of a StochasticTransformer for its configuration.

    qwen3: H(P+S+2A+5) + A + L(2H + 2HD(N+G) + 2D + 3HF) + H
    gpt2:  H(P+S+2A+6) + A + L(4H + 4HND + 3ND + H + 2HF + F + H) + 2H

    The first term is the embeddings of return, observation of S numbers, action of A (with biases) and of P positions,
    the norm over them and the action head. A second head, for the log-std, adds HA + A;
    what conditions the output on the return, 2HH + 2H.
    """
    width, mlp_dim, head_dim = config.embed_dim, config.mlp_dim, config.attention_head_dim
    query_dim = config.num_heads * head_dim
    outside = width * (config.num_positions + observation_dim + 2 * action_dim + 5) + action_dim
    if config.conditioning == "output":
        outside += 2 * width * (width + 1)
    if isinstance(config, StochasticModelConfig):
        outside += (width + 1) * action_dim
    if config.backbone == "gpt2":  # LayerNorm and linear layers have biases
        attention = 4 * width * query_dim + 3 * query_dim + width
        layer = 4 * width + attention + 2 * width * mlp_dim + mlp_dim + width
        return outside + width + config.num_layers * layer + 2 * width
    attention = 2 * width * head_dim * (config.num_heads + config.num_kv_heads) + 2 * head_dim
    return outside + config.num_layers * (2 * width + attention + 3 * width * mlp_dim) + width


def data_warning(size: str, parameters: int, num_transitions: int | None, dims: tuple[int, int]) -> str:
    """A warning, with a smaller size where one has enough data, below a tenth of a token per parameter; else ""."""
    if num_transitions is None or TOKENS_PER_STEP * num_transitions >= FEWEST_TOKENS_PER_PARAMETER * parameters:
        return ""
    num_tokens = TOKENS_PER_STEP * num_transitions
    fed = [name for name, config in SIZES.items() if parameter_formula(config, *dims) <= num_tokens]
    better = fed[-1] if fed else next(iter(SIZES))
    is_smaller = parameter_formula(SIZES[better], *dims) < parameters
    ratio = num_tokens / parameters
    return (
        f"{size} has {parameters:,} parameters for {num_tokens:,} tokens of data ({ratio:.2g} per parameter): "
        f"it can memorise the data" + (f"; {better} fits better" if is_smaller else "")
    )


@dataclass(frozen=True)
class Product:
    """`count` products of [rows, inner] with [inner, columns], and as many again for each gradient that is needed."""

    rows: int
    inner: int
    columns: int
    count: int = 1
    num_gradients: int = 2

    @property
    def flops(self) -> int:
        """FLOPs of the forward pass."""
        return 2 * self.count * self.rows * self.inner * self.columns

    @property
    def training_flops(self) -> int:
        """FLOPs of the forward and the backward pass."""
        return (1 + self.num_gradients) * self.flops


def block_products(config: ModelConfig, batch_size: int, *, is_last: bool) -> list[Product]:
    """Matrix products of one block."""
    width, head_dim, num_heads = config.embed_dim, config.attention_head_dim, config.num_heads
    num_tokens = config.tokens_per_step * config.context_length
    num_queries = config.context_length if is_last else num_tokens
    rows, all_rows = batch_size * num_queries, batch_size * num_tokens
    num_up = 1 if config.backbone == "gpt2" else 2  # qwen3 has a gate
    return [
        Product(rows, width, num_heads * head_dim),
        Product(all_rows, width, 2 * config.num_kv_heads * head_dim),
        Product(num_queries, head_dim, num_tokens, count=batch_size * num_heads),
        Product(num_queries, num_tokens, head_dim, count=batch_size * num_heads),
        Product(rows, num_heads * head_dim, width),
        Product(rows, width, num_up * config.mlp_dim),
        Product(rows, config.mlp_dim, width),
    ]


def model_products(config: ModelConfig, *, observation_dim: int, action_dim: int, batch_size: int) -> list[Product]:
    """All matrix products on a batch: embeddings, whose inputs need no gradient, blocks and heads."""
    rows, num_heads = batch_size * config.context_length, 1 + isinstance(config, StochasticModelConfig)
    products = [Product(rows, inner, config.embed_dim, num_gradients=1) for inner in (1, observation_dim, action_dim)]
    for index in range(config.num_layers):
        products += block_products(config, batch_size, is_last=index == config.num_layers - 1)
    if config.conditioning == "output":
        products.append(Product(rows, config.embed_dim, 2 * config.embed_dim))
    return [*products, Product(rows, config.embed_dim, action_dim, count=num_heads)]


def forward_flops(config: ModelConfig, *, observation_dim: int, action_dim: int, batch_size: int) -> int:
    """FLOPs of the forward pass in training, on full windows; two for each multiply-add of a matrix product.

    Attention scores count in full, although causality uses half of them.
    """
    dims = {"observation_dim": observation_dim, "action_dim": action_dim}
    return sum(product.flops for product in model_products(config, **dims, batch_size=batch_size))


def training_flops(config: ModelConfig, *, observation_dim: int, action_dim: int, batch_size: int) -> int:
    """FLOPs of the forward and the backward pass of an update: what the usual utilisation (MFU) counts.

    What checkpointing computes again does not count.
    """
    dims = {"observation_dim": observation_dim, "action_dim": action_dim}
    return sum(product.training_flops for product in model_products(config, **dims, batch_size=batch_size))


def block_parameters(config: ModelConfig) -> int:
    """Parameters of a block's matrices, without biases and gains."""
    products = block_products(config, 2, is_last=True)  # of two windows, so that only weights are multiplied with once
    return sum(product.inner * product.columns for product in products if product.count == 1)


def norm_bytes(config: ModelConfig, arithmetic: Arithmetic) -> int:
    """What a norm over H keeps per token: its input, its statistics, and its output as the next one's input."""
    num_statistics = 2 if config.backbone == "gpt2" else 1
    return FLOAT32_BYTES * (config.embed_dim + num_statistics) + arithmetic.element_bytes * config.embed_dim


def mask_bytes(config: ModelConfig, arithmetic: Arithmetic) -> float:
    """Size of a dropout's mask per number, or of its list of places."""
    if not config.dropout:
        return 0
    if not arithmetic.on_cpu:
        return 1
    return INT64_BYTES * config.dropout if config.dropout <= FEW_DROPPED else MASK_BYTES


def heads_bytes(config: ModelConfig, arithmetic: Arithmetic, num_queries: int) -> int:
    """What making queries, keys and values of one window keeps besides what attention does."""
    if config.backbone == "gpt2":
        return 0
    num_tokens = config.tokens_per_step * config.context_length
    kv_size = config.num_kv_heads * config.attention_head_dim * num_tokens
    normed_size = config.num_heads * config.attention_head_dim * num_queries + kv_size
    projected = arithmetic.element_bytes * (normed_size + kv_size)
    statistics = FLOAT32_BYTES * (config.num_heads * num_queries + config.num_kv_heads * num_tokens)
    if arithmetic.on_cpu and config.rotary:
        return projected + statistics
    # The normalised heads, and in bfloat16 a float32 copy of what they come from; values are part of the projection.
    kept = FLOAT32_BYTES * normed_size * (1 + arithmetic.bfloat16) + statistics
    return kept + projected * (not (arithmetic.on_cpu and arithmetic.bfloat16))


def attention_bytes(config: ModelConfig, arithmetic: Arithmetic, num_queries: int) -> int:
    """What attention keeps of one window of T tokens.

    The fused kernel keeps its inputs and output and a number per head and query. On a CPU it is used in float32 without
    dropout only; else all scores are kept after the softmax, in float32, and as they are multiplied with the values.
    """
    element, num_tokens = arithmetic.element_bytes, config.tokens_per_step * config.context_length
    query_size = config.num_heads * config.attention_head_dim * num_queries
    kv_size = config.num_kv_heads * config.attention_head_dim * num_tokens
    if not arithmetic.on_cpu or not (arithmetic.bfloat16 or config.dropout):
        is_gpt2, is_contiguous = config.backbone == "gpt2", arithmetic.on_cpu and config.rotary
        inputs = query_size + kv_size * (1 + (is_gpt2 or is_contiguous))  # else heads_bytes has the values
        outputs = query_size * (1 + (is_contiguous and not is_gpt2))  # as it is laid out, and by token
        return element * (inputs + outputs) + FLOAT32_BYTES * config.num_heads * num_queries
    scores = config.num_heads * num_queries * num_tokens
    if arithmetic.bfloat16:
        per_score = FLOAT32_BYTES + element + mask_bytes(config, arithmetic)
    else:  # torch repeats keys and values for their groups, and its mask is float32
        kv_size, per_score = config.num_heads * config.attention_head_dim * num_tokens, 3 * FLOAT32_BYTES
    return element * 2 * (query_size + kv_size) + round(scores * per_score)


def block_bytes(config: ModelConfig, arithmetic: Arithmetic, *, is_last: bool) -> int:
    """What a block keeps of one window for the backward pass, its input included."""
    element, width, mlp_dim = arithmetic.element_bytes, config.embed_dim, config.mlp_dim
    num_tokens = config.tokens_per_step * config.context_length
    num_queries = config.context_length if is_last else num_tokens
    of_gpt2 = 1 if config.activation == "relu" else 2  # relu's output is its own record
    mlp = mlp_dim * (of_gpt2 if config.backbone == "gpt2" else 4)
    norm = norm_bytes(config, arithmetic)
    after = norm + element * mlp + 2 * width * mask_bytes(config, arithmetic)
    heads = heads_bytes(config, arithmetic, num_queries) + attention_bytes(config, arithmetic, num_queries)
    return round(norm * num_tokens + heads + after * num_queries)


def activation_bytes(
    config: ModelConfig,
    arithmetic: Arithmetic,
    *,
    observation_dim: int,
    action_dim: int,
    batch_size: int,
    checkpointing: bool = False,
) -> int:
    """What the forward pass keeps for the backward pass, as autograd saves it without a compiler.

    bfloat16 copies of the blocks' weights are not among it. With checkpointing, every block keeps its input only, and
    one block at a time is computed again.
    """
    element, width, num_steps = arithmetic.element_bytes, config.embed_dim, config.context_length
    num_tokens = config.tokens_per_step * num_steps
    norm = norm_bytes(config, arithmetic)
    inputs = num_steps * (element * (1 + observation_dim + action_dim) + INT64_BYTES * bool(config.num_positions))
    # The norm's float32 input; its output is the first block's input.
    embedded = num_tokens * FLOAT32_BYTES * (width + 1 + (config.backbone == "gpt2"))
    if config.backbone == "gpt2":
        embedded += round(num_tokens * width * mask_bytes(config, arithmetic))
    heads = num_steps * (norm + FLOAT32_BYTES * action_dim * (1 + isinstance(config, StochasticModelConfig)))
    blocks = [
        block_bytes(config, arithmetic, is_last=index == config.num_layers - 1) for index in range(config.num_layers)
    ]
    if config.conditioning == "output":  # hidden states, the embedding before and behind its SiLU, scale and shift
        heads += num_steps * width * (FLOAT32_BYTES * 2 + element * 4)
    kept = sum(blocks)
    if checkpointing:
        block_input = FLOAT32_BYTES * width * num_tokens
        kept = block_input * (config.num_layers - 1) + max(blocks)
    return round(batch_size * (inputs + embedded + kept + heads))


def training_memory_bytes(config: ModelConfig, *, observation_dim: int, action_dim: int, batch_size: int) -> int:
    """Memory of a training step in float32 on a CPU, without the data and the allocator's reserve.

    Args:
        batch_size: windows that are computed at once.
    """
    kept = activation_bytes(
        config,
        Arithmetic(bfloat16=False, on_cpu=True),
        observation_dim=observation_dim,
        action_dim=action_dim,
        batch_size=batch_size,
    )
    return TRAINED_BYTES * parameter_formula(config, observation_dim, action_dim) + kept


def kv_cache_bytes(config: ModelConfig, number_bytes: int = BFLOAT16_BYTES) -> int:
    """Size of one episode's keys and values at full context, in bfloat16 unless said otherwise."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.attention_head_dim
    return per_token * config.tokens_per_step * config.context_length * number_bytes

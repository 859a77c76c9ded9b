"""What a cached context gives is what the whole context gives: every backbone, every kind of position, every batch."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from gq.algos.dt import DTPolicy
from gq.algos.odt import ODTPolicy
from gq.models.config import Context, ModelConfig, StochasticModelConfig
from gq.models.context_cache import ContextCache
from gq.models.decision_transformer import DecisionTransformer
from gq.models.stochastic_transformer import StochasticTransformer

K, OBSERVATION_DIM, ACTION_DIM = 6, 5, 2
QWEN3 = ModelConfig(embed_dim=16, num_layers=3, num_heads=4, num_kv_heads=2, context_length=K, max_timestep=15)
SHAPES = {
    "qwen3": QWEN3,
    "qwen3, one group": replace(QWEN3, num_kv_heads=1),
    "qwen3, no groups": replace(QWEN3, num_kv_heads=4),
    "qwen3, window": replace(QWEN3, positions="window", rotary=False),
    "qwen3, rotary alone": replace(QWEN3, positions="none"),
    "qwen3, no positions": replace(QWEN3, positions="none", rotary=False),
    "gpt2": replace(QWEN3, backbone="gpt2", num_kv_heads=4),
    "gpt2, window": replace(QWEN3, backbone="gpt2", num_kv_heads=4, positions="window"),
    "qwen3, output": replace(QWEN3, conditioning="output"),
    "gpt2, output": replace(QWEN3, backbone="gpt2", num_kv_heads=4, conditioning="output"),
    "gpt2, no positions": replace(QWEN3, backbone="gpt2", num_kv_heads=4, positions="none"),
}
TOLERANCE = 1e-5
NUM_STEPS = 3 * K + 2


def build(shape: str) -> DecisionTransformer:
    """Return a model whose weights are large enough for every token to matter."""
    torch.manual_seed(0)
    model = DecisionTransformer(SHAPES[shape], observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.eval()


class Checked:
    """A policy whose model is asked twice, with the cache and without; keeps the greatest difference."""

    def __init__(self, policy: DTPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.policy, self.error, self.lengths = policy, 0.0, []
        self.num_computed: list[int] = []  # tokens, of each step
        own = policy.model.act

        def act(*context: Tensor, cache: ContextCache | None) -> Tensor:
            known = cache.num_tokens if cache else 0
            chosen = own(*context, cache=cache)
            self.lengths.append(context[0].shape[1])
            self.num_computed.append(policy.model.config.tokens_per_step * context[0].shape[1] - 1 - known)
            self.error = max(self.error, float((chosen - own(*context)).abs().max()))
            return chosen

        monkeypatch.setattr(policy.model, "act", act)

    def walk(self, num_episodes: int, ends: dict[int, int] | None = None) -> np.ndarray:
        """Act for NUM_STEPS steps, episode i up to step ends[i]; return the actions [T, E, A], zeros after an end."""
        generator = np.random.default_rng(1)
        actions = np.zeros((NUM_STEPS, num_episodes, ACTION_DIM))
        self.policy.reset(np.linspace(5, 50, num_episodes), range(num_episodes))
        for step in range(NUM_STEPS):
            seen = generator.normal(size=(num_episodes, OBSERVATION_DIM)).astype(np.float32)
            earned = generator.uniform(size=num_episodes)
            rows = np.array([row for row in range(num_episodes) if step < (ends or {}).get(row, NUM_STEPS)])
            actions[step, rows] = self.policy.act(rows, seen[rows])
            self.policy.record(rows, actions[step, rows].astype(np.float32), earned[rows])
        return actions


@pytest.mark.parametrize("num_episodes", [1, 7])
@pytest.mark.parametrize("context", ["sliding", "blocks"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_cached_context_gives_what_the_whole_one_gives(
    shape: str, context: Context, num_episodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = Checked(DTPolicy(build(shape), autocast=nullcontext, context=context), monkeypatch)
    checked.walk(num_episodes)
    assert checked.error < TOLERANCE
    num = SHAPES[shape].tokens_per_step
    assert checked.num_computed[:K] == [num - 1] + [num] * (K - 1), "a context that grows is computed once"


@pytest.mark.parametrize("shape", ["qwen3", "gpt2"])
def test_episodes_that_end_leave_the_caches_of_the_others(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = {0: 2, 3: K + 1, 4: K + 1, 5: 2 * K}
    checked = Checked(DTPolicy(build(shape), autocast=nullcontext, context="blocks"), monkeypatch)
    dropped = checked.walk(7, ends)
    assert checked.error < TOLERANCE
    together = checked.walk(7)
    for row in range(7):
        end = ends.get(row, NUM_STEPS)
        np.testing.assert_allclose(dropped[:end, row], together[:end, row], rtol=0, atol=TOLERANCE)


def test_the_check_notices_a_cache_of_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ContextCache, "keep", wrong_rows)
    checked = Checked(DTPolicy(build("qwen3"), autocast=nullcontext, context="blocks"), monkeypatch)
    checked.walk(7, {0: 2})
    assert checked.error > 100 * TOLERANCE


def wrong_rows(cache: ContextCache, rows: Tensor) -> None:
    """Keep as many rows, but the first ones."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[: len(rows)], layer.values[: len(rows)]


@pytest.mark.parametrize(("context", "lengths"), [("sliding", [K] * 8), ("blocks", [3, 4, 5, 6, 3, 4, 5, 6])])
def test_a_full_context_slides_or_begins_anew(
    context: Context, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = Checked(DTPolicy(build("qwen3"), autocast=nullcontext, context=context), monkeypatch)
    checked.walk(2)
    assert checked.lengths[: K + 8] == [*range(1, K + 1), *lengths]


def test_blocks_compute_each_step_about_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {}
    for context in ("sliding", "blocks"):
        checked = Checked(DTPolicy(build("qwen3"), autocast=nullcontext, context=context), monkeypatch)  # type: ignore[arg-type]
        checked.walk(2)
        counts[context] = checked.num_computed[K : K + 8]
        monkeypatch.undo()
    assert counts == {"sliding": [3 * K - 1] * 8, "blocks": [8, 3, 3, 3] * 2}


@pytest.mark.parametrize("context", ["sliding", "blocks"])
def test_an_online_transformer_has_caches_too(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = StochasticModelConfig(embed_dim=16, num_layers=2, context_length=K, acting_context=4)
    model = StochasticTransformer(config, observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM)
    policy, own, errors, lengths = ODTPolicy(model, autocast=nullcontext, context=context), model.act, [], []

    def act(*given: Tensor, cache: ContextCache | None) -> Tensor:
        chosen = own(*given, cache=cache)
        lengths.append(given[0].shape[1])
        errors.append(float((chosen - own(*given)).abs().max()))
        return chosen

    monkeypatch.setattr(model, "act", act)
    Checked.walk(policy_of(policy), 3)
    assert max(errors) < TOLERANCE
    assert lengths[:8] == [1, 2, 3, 4, *([4] * 4 if context == "sliding" else [2, 3, 4, 2])]


def policy_of(policy: DTPolicy) -> Checked:
    """Return what walks with a policy as it is."""
    walker = object.__new__(Checked)
    walker.policy = policy
    return walker


def test_bfloat16_caches_give_what_bfloat16_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        checked = Checked(DTPolicy(build("qwen3"), autocast=nullcontext, context="blocks"), monkeypatch)
        checked.walk(3)
    assert checked.policy.cache is not None
    assert checked.policy.cache.layers[0].keys.dtype == torch.bfloat16
    assert checked.error < 2e-2


def test_a_cache_that_misses_an_episode_starts_anew() -> None:
    zeros, actions = np.zeros((2, OBSERVATION_DIM), np.float32), []
    for looks_aside in (False, True):
        policy = DTPolicy(build("qwen3"), autocast=nullcontext)
        policy.reset(np.array([5.0, 6.0]))
        policy.record(np.arange(2), policy.act(np.arange(2), zeros), np.ones(2))
        if looks_aside:
            policy.context(np.array([1]), zeros[:1])
        actions.append(policy.act(np.arange(2), zeros))
    np.testing.assert_allclose(actions[1], actions[0], rtol=0, atol=TOLERANCE)

"""Counts in closed form equal the instantiated model's, and the published ones are explained to the last parameter."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from commandline import gq
from gq import presets
from gq.costs import transformers as params
from gq.costs.world import report_world
from gq.envs.tasks import resolve_task
from gq.errors import UsageError
from gq.models import costs
from gq.models.config import SIZES, ModelConfig, resolve_size
from gq.models.decision_transformer import DecisionTransformer
from gq.models.world_config import WORLD_MODEL_SIZES
from gq.models.world_model import WorldModel
from test_world_model import COUNTS, TERMINATION_HEADS

HUMANOID = (348, 17)
SOURCE = Path(__file__).parents[1] / "src"


@st.composite
def shapes(draw: st.DrawFn) -> ModelConfig:
    num_kv_heads = draw(st.integers(1, 3))
    backbone = draw(st.sampled_from(["qwen3", "gpt2"]))
    num_heads = num_kv_heads * (1 if backbone == "gpt2" else draw(st.integers(1, 3)))
    return ModelConfig(
        backbone=backbone,
        embed_dim=num_heads * 2 * draw(st.integers(1, 6)),
        num_layers=draw(st.integers(1, 3)),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=2 * draw(st.integers(0, 5)),
        mlp_ratio=draw(st.floats(1, 6)),
        context_length=draw(st.integers(1, 5)),
        conditioning=draw(st.sampled_from(["token", "output"])),
        positions=draw(st.sampled_from(["none", "timestep", "window"])),
        max_timestep=draw(st.integers(1, 50)),
    )


@settings(max_examples=60, deadline=None)
@given(shapes(), st.integers(1, 40), st.integers(1, 20))
def test_formula_and_count_equal_the_built_model(config: ModelConfig, observation_dim: int, action_dim: int) -> None:
    assert config.problem() is None
    model = DecisionTransformer(config, observation_dim=observation_dim, action_dim=action_dim)
    built = sum(parameter.numel() for parameter in model.parameters())
    assert params.count_parameters(config, observation_dim, action_dim) == built
    assert costs.parameter_formula(config, observation_dim, action_dim) == built


@settings(max_examples=60, deadline=None)
@given(shapes(), st.integers(1, 40), st.integers(1, 20))
def test_the_difference_to_the_published_count_adds_up(
    config: ModelConfig, observation_dim: int, action_dim: int
) -> None:
    published = params.published_formula(config, observation_dim, action_dim)
    terms = params.published_difference(config, observation_dim)
    assert (published is None) == (terms == {})
    if published is not None:
        assert published - costs.parameter_formula(config, observation_dim, action_dim) == sum(terms.values())


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("1m", 768_465), ("13m", 13_298_193), ("0.1b", 104_894_993), ("0.6b", 625_066_001), ("1.9b", 1_935_652_881)],
)
def test_every_size_counts_what_it_is_called(size: str, parameters: int) -> None:
    report = params.report(size, task="Humanoid-v5")
    assert (report.parameters, report.parameters_formula) == (parameters, parameters)
    assert SIZES[size].problem() is None
    assert (SIZES[size].dropout, SIZES[size].activation, SIZES[size].max_timestep) == (0.0, "silu", 1000)


@pytest.mark.parametrize(
    ("size", "published", "terms"),
    [("1.9b", 1_936_361_838, (713_052, 2_049, -6_144)), ("0.1b", 105_161_838, (267_612, 769, -1_536))],
)
def test_the_published_recipes_give_the_published_counts(size: str, published: int, terms: tuple[int, ...]) -> None:
    report = params.report(size, task="humanoid")
    assert report.parameters_published == published
    assert tuple(report.published_difference.values()) == terms
    assert published - report.parameters == sum(terms)


def test_the_published_formula_has_no_gpt2() -> None:
    config = ModelConfig(backbone="gpt2", num_heads=1, num_kv_heads=1)
    assert params.published_formula(config, *HUMANOID) is None
    assert params.published_formula(replace(SIZES["1m"], head_dim=64), *HUMANOID) is None
    assert params.published_formula(replace(SIZES["1m"], positions="none"), *HUMANOID) is None


def test_counting_the_largest_size_takes_no_memory() -> None:
    resource = pytest.importorskip("resource")
    params.count_parameters(SIZES["1m"], *HUMANOID)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    params.count_parameters(SIZES["1.9b"], *HUMANOID)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000_000 / (
        1 if sys.platform == "darwin" else 1024
    )


def test_counting_leaves_torch_as_it_was() -> None:
    params.count_parameters(SIZES["1m"], *HUMANOID)
    layer = torch.nn.Linear(3, 4)
    assert layer.weight.device.type == "cpu"
    assert layer.weight.abs().sum() > 0


def test_nothing_imports_torch_before_counting_nor_its_compiler_after() -> None:
    program = (
        "import sys; from gq.costs import transformers as params; print('torch' in sys.modules);"
        "params.report('1m', task='Hopper-v5'); print('torch' in sys.modules, 'torch._dynamo' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == ["False", "True", "False"]


def test_flops_equal_a_count_by_hand() -> None:
    config = ModelConfig(embed_dim=8, num_layers=2, num_heads=2, num_kv_heads=1, mlp_ratio=2.0, context_length=5)
    key_and_value = 2 * 8 * 4
    others = 8 * 8 + 8 * 8 + 3 * 8 * 16  # query, output, MLP
    attention = 2 * 8 * 15  # scores and mixing over 15 keys
    outside = 8 * (1 + 11 + 3 + 3)
    # The first block computes fifteen tokens, the last one the keys and values of all and the rest of five.
    window = 2 * (
        15 * (key_and_value + others + attention) + 15 * key_and_value + 5 * (others + attention) + 5 * outside
    )
    assert costs.forward_flops(config, observation_dim=11, action_dim=3, batch_size=1) == window
    report = params.report_config(config, size="tiny", observation_dim=11, action_dim=3)
    assert report.flops_per_token == window // 15
    embeddings = 2 * 5 * 8 * (1 + 11 + 3)  # whose inputs need no gradient
    assert report.training_flops_per_token == (3 * window - embeddings) // 15


@pytest.mark.parametrize(
    "config",
    [
        replace(SIZES["1m"], num_layers=6),
        replace(SIZES["0.1b"], embed_dim=192, num_layers=6),
        ModelConfig(backbone="gpt2", num_layers=6, num_kv_heads=4, mlp_ratio=4.0, activation="gelu"),
        ModelConfig(backbone="gpt2", num_layers=6, num_kv_heads=4, mlp_ratio=4.0, activation="relu"),
    ],
)
def test_the_activation_estimate_is_near_what_autograd_keeps(config: ModelConfig) -> None:
    model = DecisionTransformer(config, observation_dim=11, action_dim=3)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.detach()  # held, so that no address is used twice
        return tensor.detach()  # an output kept as it is would keep its own graph alive

    batch_size, num_steps = 8, config.context_length
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(
            torch.randn(batch_size, num_steps, 11),
            torch.randn(batch_size, num_steps, 3),
            torch.randn(batch_size, num_steps, 1),
            torch.arange(num_steps).expand(batch_size, num_steps),
        ).square().mean()
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    dims = {"observation_dim": 11, "action_dim": 3}
    held = 16 * costs.parameter_formula(config, 11, 3)
    estimate = costs.training_memory_bytes(config, **dims, batch_size=batch_size) - held
    assert estimate == pytest.approx(measured, rel=0.05)


def test_training_memory_is_sixteen_bytes_a_parameter_and_grows_with_the_batch() -> None:
    report = params.report("1m", task="Humanoid-v5")
    half = params.report("1m", task="Humanoid-v5", batch_size=32)
    held = 16 * report.parameters
    assert report.training_memory_bytes - held == 2 * (half.training_memory_bytes - held)


def test_the_cache_holds_keys_and_values_of_sixty_tokens() -> None:
    assert costs.kv_cache_bytes(SIZES["0.6b"]) == 2 * 24 * 6 * 128 * 60 * 2


def test_a_model_too_large_for_its_data_is_warned_about_with_a_better_size() -> None:
    report = params.report("0.6b", task="Humanoid-v5", num_transitions=1_000_000)
    assert report.tokens_per_parameter == pytest.approx(3_000_000 / 625_066_001)
    assert "625,066,001 parameters for 3,000,000 tokens" in report.warning
    assert report.warning.endswith("; 1m fits better")
    fed = params.report("1m", task="Humanoid-v5", num_transitions=1_000_000)
    assert (fed.warning, round(fed.tokens_per_parameter or 0, 3)) == ("", 3.904)
    unknown = params.report("0.6b", task="Humanoid-v5")
    assert (unknown.tokens_per_parameter, unknown.warning) == (None, "")
    tiny = params.report("1m", task="Hopper-v5", num_transitions=1000)
    assert tiny.warning
    assert "fits better" not in tiny.warning


def test_no_larger_model_is_advised_than_the_one_at_hand() -> None:
    config = replace(SIZES["1m"], embed_dim=16, num_layers=1)
    small = params.report_config(config, size="custom", observation_dim=11, action_dim=3, num_transitions=100)
    assert small.parameters < 50_000
    assert small.warning
    assert "fits better" not in small.warning


@pytest.mark.parametrize(
    ("name", "hint"), [("0.6", "did you mean 0.6b"), ("13M", "13m"), ("huge", "sizes are 1m, 13m")]
)
def test_an_unknown_size_is_a_usage_error_with_the_known_ones(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"there is no size {name}") as caught:
        resolve_size(name)
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_an_unknown_task_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="there is no task hoper"):
        params.report("1m", task="hoper")


# World models

PUBLISHED = {  # the rows of the published table, by a task of each
    "pendulum-swingup": "pendulum",
    "cartpole-swingup": "cartpole",
    "reacher-hard": "reacher",
    "hopper-hop": "hopper",
    "cheetah-run": "cheetah",
    "HalfCheetah-v5": "cheetah",
    "Walker2d-v5": "cheetah",
    "walker-walk": "walker",
    "quadruped-run": "quadruped",
    "humanoid-run": "humanoid",
    "dog-run": "dog",
    "Hopper-v5": "Hopper-v5",
    "Ant-v5": "Ant-v5",
    "Humanoid-v5": "Humanoid-v5",
}


def world_document(*arguments: Any) -> Any:
    result = gq("params", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(("task", "row"), PUBLISHED.items())
def test_world_models_have_the_published_counts_by_command_and_by_instantiation(task: str, row: str) -> None:
    interface = resolve_task(task)
    assert (interface.observation_dim, interface.action_dim) == COUNTS[row][:2]
    printed = world_document("tdmpc2", "--task", task)
    assert printed["task"] == task
    assert [model["size"] for model in printed["models"]] == ["1", "5", "19", "48", "317"]
    for model, expected in zip(printed["models"], COUNTS[row][2:], strict=True):
        assert model["parameters"] == expected
        assert model["parameters_with_target"] == expected + model["networks"]["q"]
        termination = TERMINATION_HEADS[model["size"]] if interface.can_terminate else 0
        assert model["parameters_termination"] == model["networks"]["termination"] == termination
        with params.weights_without_memory():
            built = WorldModel(
                WORLD_MODEL_SIZES[model["size"]],
                observation_dim=interface.observation_dim,
                action_dim=interface.action_dim,
                episodic=interface.can_terminate,
            )
        assert sum(value.numel() for value in built.parameters()) == model["parameters_in_all"]
        trained = sum(value.numel() for value in built.parameters() if value.requires_grad)
        assert trained == expected + termination == sum(model["networks"].values())


def test_the_world_model_of_dog_run_costs_what_was_computed_by_hand() -> None:
    (model,) = world_document("tdmpc2", "--task", "dog-run", "--size", "5")["models"]
    assert model["parameters"] == 5_159_082
    assert model["parameters_with_target"] == 8_152_227
    assert model["weights_bytes"] == 4 * 8_152_227
    assert model["replay_bytes"] == 4 * 500_000 * (223 + 38 + 2)
    assert round(model["original_plan_multiply_adds"] / 1e9, 1) == 31.8
    assert 0.65 < model["plan_multiply_adds"] / model["original_plan_multiply_adds"] < 0.7
    larger = world_document("tdmpc2", "--task", "dog-run", "--size", "5", "--batch-size", "512")["models"][0]
    assert (model["batch_size"], larger["batch_size"]) == (256, 512)
    assert larger["update_multiply_adds"] == 2 * model["update_multiply_adds"]
    assert larger["training_memory_bytes"] > model["training_memory_bytes"] > 16 * model["parameters"]


def test_the_tables_of_world_models() -> None:
    assert gq("params", "tdmpc2", "-q").stdout.split()[1] == "5159082", "dog-run, unless another task is named"
    lines = [line.split() for line in gq("params", "tdmpc2", "--task", "hopper", "--size", "5").stdout.splitlines()]
    assert lines[1] == [
        *("size", "parameters", "with", "target", "encoder", "dynamics", "reward", "policy", "q", "termination")
    ]
    assert lines[2][:3] == ["5", "4,943,460", "7,847,005"]
    assert lines[2][-1] == "527,873"
    assert lines[-1][-4:] == ["as", "they", "are", "published"]
    assert "termination" not in gq("params", "tdmpc2", "--task", "walker-walk").stdout


def test_world_models_are_counted_without_torch() -> None:
    code = (
        "import sys; from gq import presets; from gq.costs.world import report_world;"
        "report_world(presets.tdmpc2('5').replace({'task': 'dog-run'})); print('torch' in sys.modules)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, check=True
    )
    assert child.stdout == "False\n"


def test_a_run_is_counted_with_its_own_settings(tmp_path: Path) -> None:
    from gq.config import to_toml

    config = presets.tdmpc2("1").replace({"task": "cartpole-swingup", "train.batch_size": 32, "model.num_q": 4})
    (tmp_path / "config.toml").write_text(to_toml(config))
    (model,) = world_document(tmp_path)["models"]
    assert (model["size"], model["batch_size"]) == ("1", 32)
    assert (
        model["networks"]["q"]
        == 2 * report_world(presets.tdmpc2("1").replace({"task": "cartpole-swingup"})).networks["q"]
    )
    assert world_document(tmp_path, "--task", "dog-run")["task"] == "dog-run"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["tdmpc2", "--size", "7"], "there is no size 7", "1, 5, 19, 48, 317"),
        (["tdmpc2", "--task", "dog-runn"], "there is no task dog-runn", "did you mean dog-run"),
        (["tdmpc2", "--dataset", "hopper"], "--dataset is for transformers", "omit it"),
        (["tdmpc2", "--batch-size", "-1"], "--batch-size -1 is not", "--batch-size 64"),
        (["1m", "--size", "5"], "--size is for gq params tdmpc2", "gq params tdmpc2 --size 5"),
        (["tdmpc"], "tdmpc is neither a size", "did you mean tdmpc2"),
    ],
)
def test_what_world_models_cannot_be_asked(arguments: list[str], message: str, hint: str) -> None:
    result = gq("params", *arguments)
    assert result.exit_code == 2
    error, advice = result.stderr.splitlines()
    assert message in error
    assert hint in advice

"""Correctors start as the plan they correct, stay within bounds, see what they should and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gq.errors import GqError, UsageError
from gq.models.corrector import (
    ARCHITECTURES,
    Architecture,
    Corrector,
    CorrectorConfig,
    CorrectorInputs,
)
from gq.policies.correctors import find_corrector, known_correctors, load_corrector, save_corrector

LATENT, LENGTH = 16, 4
FORMS: list[dict[str, Any]] = [{}, {"published": True}, {"use_age": False}, {"dropout": 0.3}]


def corrector_parameters(config: CorrectorConfig) -> int:
    """Return the number of a corrector's parameters."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Corrector(config).parameters())


def make_inputs(num: int = 5, action_dim: int = 2, seed: int = 0) -> CorrectorInputs:
    """Return made-up inputs of which the first has no past."""
    generator = torch.Generator().manual_seed(seed)

    def simplices(*shape: int) -> Tensor:
        return torch.randn(*shape, LATENT, generator=generator).unflatten(-1, (-1, 8)).softmax(-1).flatten(-2)

    def actions(*shape: int) -> Tensor:
        return torch.rand(*shape, action_dim, generator=generator) * 2 - 1

    real, predicted, plan_action = simplices(num), simplices(num), actions(num)
    real_before, expected_before = simplices(num, LENGTH - 1), simplices(num, LENGTH - 1)
    before = [real_before, expected_before, real_before - expected_before, actions(num, LENGTH - 1)]
    newest = torch.cat([real, predicted, real - predicted, plan_action], dim=-1)
    mask = torch.ones(num, LENGTH, dtype=torch.bool)
    mask[0, :-1] = False
    return CorrectorInputs(
        real=real,
        predicted=predicted,
        plan_action=plan_action,
        age=torch.arange(num) % 5 + 1,
        plan_std=actions(num).abs() + 0.05,
        policy_mean=actions(num),
        history=torch.cat([torch.cat(before, dim=-1), newest[:, None]], dim=1),
        mask=mask,
    )


def make_corrector(arch: Architecture, *, action_dim: int = 2, is_fresh: bool = False, **fields: Any) -> Corrector:
    """Return a corrector in evaluation mode, all of it with weights that matter unless it is to be fresh."""
    torch.manual_seed(1)
    sizes = {"latent_dim": LATENT, "action_dim": action_dim, "hidden_dim": 24}
    corrector = Corrector(CorrectorConfig(**sizes | {"arch": arch, "history_length": LENGTH} | fields)).eval()
    if not is_fresh:
        torch.nn.init.normal_(corrector.head.weight, std=0.1)
    return corrector


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        ({"latent_dim": 512, "action_dim": 6}, 1_316_870),
        ({"latent_dim": 512, "action_dim": 21}, 1_324_565),
        ({"latent_dim": 512, "action_dim": 38}, 1_333_286),
        ({"latent_dim": 128, "action_dim": 6}, 1_021_958),
        ({"latent_dim": 512, "action_dim": 6, "hidden_dim": 512, "num_layers": 4}, 7_620_614),
        ({"latent_dim": 512, "action_dim": 6, "arch": "temporal"}, 860_806),
        ({"latent_dim": 512, "action_dim": 21, "arch": "temporal"}, 870_421),
        ({"latent_dim": 512, "action_dim": 38, "arch": "temporal"}, 881_318),
    ],
)
def test_the_published_form_has_the_documented_parameters(fields: dict[str, Any], parameters: int) -> None:
    assert corrector_parameters(CorrectorConfig(published=True, **fields)) == parameters


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_own_form_has_the_parameters_that_its_layers_add_up_to(arch: Architecture) -> None:
    hidden, width, age = 256, 128, 16

    def mlp(inputs: int) -> int:
        return inputs * hidden + hidden + 2 * hidden + hidden * hidden + hidden

    if arch == "two-tower":
        encoded, parameters = 3 * hidden, 2 * mlp(512)
    else:
        encoded, parameters = hidden + width, (3 * 512 + 6) * width + width + 4 * width
        attention = 4 * (width * width + width)
        feedforward = width * 256 + 256 + 256 * width + width
        parameters += 2 * (attention + feedforward + 4 * width)
    parameters += mlp(3 * 6 + age) + 6 * age + 2 * mlp(encoded) + hidden * 6 + 6
    assert corrector_parameters(CorrectorConfig(latent_dim=512, action_dim=6, arch=arch, max_age=5)) == parameters


# --- what it returns --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", FORMS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_untrained_it_is_the_plan_to_the_bit(arch: Architecture, fields: dict[str, Any]) -> None:
    inputs = make_inputs()
    corrector = make_corrector(arch, is_fresh=True, **fields)
    assert torch.equal(corrector(inputs), inputs.plan_action)
    corrector.scale_inputs(inputs.real, inputs.predicted)
    corrector.bound_residual(inputs.plan_action)
    assert torch.equal(corrector(inputs), inputs.plan_action)
    assert not torch.equal(make_corrector(arch, **fields)(inputs), inputs.plan_action)


@settings(max_examples=25, deadline=None)
@given(
    arch=st.sampled_from(ARCHITECTURES),
    action_dim=st.integers(1, 3),
    num=st.integers(1, 4),
    scale=st.sampled_from([0.1, 10.0, 1000.0]),
    published=st.booleans(),
    seed=st.integers(0, 100),
)
def test_actions_are_bounded_and_shaped_like_the_plan(
    arch: Architecture, action_dim: int, num: int, scale: float, published: bool, seed: int
) -> None:
    inputs = make_inputs(num, action_dim, seed)
    corrector = make_corrector(arch, action_dim=action_dim, published=published)
    corrector.head.weight.data *= scale
    corrector.bound_residual(torch.full((10, action_dim), 0.2))
    corrected = corrector(inputs)
    assert corrected.shape == (num, action_dim)
    assert corrected.abs().max() <= 1
    bound = 1.0 if published else 0.4
    assert (corrected - inputs.plan_action).abs().max() <= bound + 1e-6


def test_each_actions_residual_has_a_bound_of_its_own() -> None:
    corrector = make_corrector("two-tower")
    corrector.bound_residual(torch.tensor([[0.3, -1.5], [-0.1, 0.0]]))
    torch.testing.assert_close(corrector.bound, torch.tensor([0.6, 2.0]), atol=0.01, rtol=0)
    corrector.bound_residual(torch.zeros(3, 2))
    assert corrector.bound.tolist() == pytest.approx([0.1, 0.1]), "never so small that nothing could be learnt"


# --- what it sees -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("published", [False, True])
def test_padding_does_not_matter_and_the_past_and_the_newest_do(published: bool) -> None:
    corrector, inputs = make_corrector("temporal", published=published), make_inputs()
    before = corrector.unclipped(inputs)
    padded = inputs.history.clone()
    padded[0, :-1] = padded[0, [2, 0, 1]] * 100 + 7
    assert torch.equal(corrector.unclipped(inputs._replace(history=padded))[0], before[0])
    for place in range(LENGTH):
        changed = inputs.history.clone()
        changed[1:, place] += 0.5
        after = corrector.unclipped(inputs._replace(history=changed))
        assert (after - before)[1:].abs().max(dim=1).values.min() > 1e-6, f"token {place}"
    swapped = inputs.history[:, [1, 0, 2, 3]]
    assert not torch.allclose(corrector.unclipped(inputs._replace(history=swapped))[1:], before[1:]), "order matters"


def sees(corrector: Corrector) -> set[str]:
    """Return the inputs that make a difference."""
    inputs, found = make_inputs(), set()
    for name, part in inputs._asdict().items():
        if name == "mask":
            continue
        other = part % 5 + 1 if name == "age" else part * 0.7
        if not torch.equal(corrector(inputs._replace(**{name: other})), corrector(inputs)):
            found.add(name)
    return found


@pytest.mark.parametrize(
    ("arch", "fields", "names"),
    [
        ("two-tower", {}, "real predicted plan_action age plan_std policy_mean"),
        ("two-tower", {"use_age": False}, "real predicted plan_action plan_std policy_mean"),
        ("two-tower", {"plan_blind": True}, "real policy_mean"),
        ("two-tower", {"published": True}, "real predicted plan_action"),
        ("temporal", {}, "history plan_action age plan_std policy_mean"),
        ("temporal", {"plan_blind": True}, "history policy_mean"),
        ("temporal", {"published": True}, "history plan_action"),
    ],
)
def test_it_sees_what_its_form_says(arch: Architecture, fields: dict[str, Any], names: str) -> None:
    assert sees(make_corrector(arch, **fields)) == set(names.split())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_blind_to_the_plan_it_corrects_the_policy_and_sees_latents_alone(arch: Architecture) -> None:
    inputs = make_inputs()
    assert torch.equal(make_corrector(arch, plan_blind=True, is_fresh=True)(inputs), inputs.policy_mean)
    corrector = make_corrector(arch, plan_blind=True)
    changed = inputs.history.clone()
    changed[..., LATENT:] = 9.0
    assert torch.equal(corrector(inputs._replace(history=changed)), corrector(inputs))


def test_ages_beyond_the_oldest_count_as_the_oldest() -> None:
    corrector, inputs = make_corrector("two-tower", max_age=3), make_inputs()
    old, older = (corrector(inputs._replace(age=torch.full_like(inputs.age, age))) for age in (3, 11))
    assert torch.equal(old, older)


def test_another_history_length_is_refused() -> None:
    with pytest.raises(AssertionError, match="history length"):
        make_corrector("temporal", history_length=3)(make_inputs())


# --- on disk ----------------------------------------------------------------------------------------------------------

FACTS = {"teacher": "agent", "checkpoint": "step-1", "teacher_sha256": "a" * 64}
FACTS |= {"execution_horizon": 6, "plan_horizon": 3}  # type: ignore[dict-item]


@pytest.mark.parametrize("fields", [*FORMS, {"plan_blind": True}])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, arch: Architecture, fields: dict[str, Any]) -> None:
    corrector, inputs = make_corrector(arch, **fields), make_inputs()
    corrector.scale_inputs(inputs.real, inputs.predicted)
    corrector.bound_residual(inputs.plan_action)
    folder = save_corrector(tmp_path / "correctors" / arch, corrector, FACTS)
    loaded = load_corrector(folder, "a" * 64)
    assert loaded.corrector.config == corrector.config
    assert (loaded.execution_horizon, loaded.plan_horizon) == (6, 3)
    assert not loaded.corrector.training
    for name, tensor in corrector.state_dict().items():
        assert torch.equal(loaded.corrector.state_dict()[name], tensor), name
    assert torch.equal(loaded.corrector(inputs), corrector(inputs))
    assert known_correctors(tmp_path) == [arch]
    assert find_corrector(tmp_path) == find_corrector(tmp_path, arch) == find_corrector(tmp_path, str(folder)) == folder


def test_another_teachers_corrector_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    folder = save_corrector(tmp_path / "correctors" / "two-tower", make_corrector("two-tower"), FACTS)
    with pytest.raises(UsageError, match="another teacher: weights aaaaaaaaaaaa, not bbbbbbbbbbbb"):
        load_corrector(folder, "b" * 64)
    text = (folder / "corrector.json").read_text()
    for old, new in [('"arch": "two-tower"', '"arch": "temporal"'), ('"hidden_dim": 24', '"hidden_dim": 25')]:
        assert old in text
        (folder / "corrector.json").write_text(text.replace(old, new))
        with pytest.raises(GqError, match="cannot be used"):
            load_corrector(folder, "a" * 64)
    (folder / "corrector.json").write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(GqError, match="another version of gq"):
        load_corrector(folder, "a" * 64)
    (folder / "corrector.json").write_text(text)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(GqError, match="damaged"):
        load_corrector(folder, "a" * 64)


def test_correctors_are_found_by_name_or_the_choice_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no corrector"):
        find_corrector(tmp_path)
    for name in ("temporal", "blind"):
        save_corrector(tmp_path / "correctors" / name, make_corrector("temporal"), FACTS)
    with pytest.raises(UsageError, match="several correctors"):
        find_corrector(tmp_path)
    with pytest.raises(UsageError, match="has no corrector temprol") as caught:
        find_corrector(tmp_path, "temprol")
    assert caught.value.hint == "did you mean temporal?"

"""Official TD-MPC2 checkpoints as our world models: every layout, every key, every refusal."""

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gq.envs.tasks import CONTROL_TASKS, resolve_task
from gq.errors import DataError, GqError, UsageError
from gq.models.world_config import WORLD_MODEL_SIZES, WorldModelConfig
from gq.models.world_model import WorldModel
from gq.official.importing import ImportedModel, import_tdmpc2, infer_shape, official_name
from gq.official.names import MT30
from test_parity import Recorded, assert_close

TINY = WorldModelConfig(encoder_dim=12, mlp_dim=10, latent_dim=16, num_q=3)
LAYOUTS = ["A", "B", "C", "C'"]
OBSERVATION_DIM, ACTION_DIM = 6, 2


def random_model(config: WorldModelConfig = TINY, **options: Any) -> WorldModel:
    """Return a model in which every parameter is random, so that none can be left out or swapped unnoticed."""
    options = {"observation_dim": OBSERVATION_DIM, "action_dim": ACTION_DIM, **options}
    model = WorldModel(config, **options).eval()
    generator = torch.Generator().manual_seed(0)
    for value in model.state_dict().values():
        value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return model


def official(model: WorldModel, layout: str = "A") -> dict[str, Any]:
    """Return a model's state dict as the official code would have written it."""
    state = {official_name(name, layout): value.clone() for name, value in model.state_dict().items()}
    if layout == "A":
        return state
    state |= {"log_std_min": torch.tensor(-10), "log_std_dif": torch.tensor(12)}
    detached = "_detach_Qs_params." if layout.startswith("C") else "_detach_Qs.params."
    state |= {key.replace("_Qs.params.", detached): value for key, value in state.items() if key.startswith("_Qs.")}
    if layout == "C'":
        return state | {"_Qs.module.0.weight": torch.empty(2, 3, device="meta")}
    prefixes = ("_Qs.params.", detached, official_name("target_q_heads.layers.0.weight", layout)[:-8])
    state |= {f"{prefix}__batch_size": torch.Size([3]) for prefix in prefixes}
    return state | {f"{prefix}__device": torch.device("cuda", 0) for prefix in prefixes}


def imported(tmp_path: Path, state: Any, task: str = "", name: str = "model.pt") -> ImportedModel:
    """Return what a file of a state dict is imported as."""
    path = tmp_path / name
    torch.save({"model": state}, path)
    return import_tdmpc2(path, task)


def loaded(found: ImportedModel) -> WorldModel:
    model = WorldModel(
        found.config, observation_dim=found.observation_dim, action_dim=found.action_dim, episodic=found.episodic
    )
    model.load_state_dict(found.state)
    return model.eval()


def assert_same_state(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


# --- the recorded files -----------------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize(("file", "layout"), [("a", "A"), ("c", "C"), ("cprime", "C'")])
@torch.no_grad()
def test_an_official_file_computes_what_the_official_code_computes(all_fixtures, file, layout):
    recorded = Recorded(all_fixtures / "tdmpc2_layouts_expected.npz")
    found = import_tdmpc2(all_fixtures / f"tdmpc2_layout_{file}.pt")
    assert (found.layout, found.size, found.episodic, found.notes) == (layout, "", False, ())
    assert (found.observation_dim, found.action_dim) == (recorded.meta["obs_dim"], recorded.meta["action_dim"])
    names = {"encoder_dim": "enc_dim", "num_encoder_layers": "num_enc_layers", "simplex_dim": "simnorm_dim"}
    for ours in ("encoder_dim", "num_encoder_layers", "simplex_dim", "mlp_dim", "latent_dim", "num_q", "num_bins"):
        assert getattr(found.config, ours) == recorded.meta[names.get(ours, ours)]
    model = loaded(found)
    latents, actions = model.encode(recorded["obs"]), recorded["action"]
    assert_close(latents, recorded["z"])
    assert_close(model.next(latents, actions), recorded["next_z"])
    assert_close(model.reward_logits(latents, actions), recorded["reward_logits"])
    assert_close(model.reward(latents, actions)[..., None], recorded["reward"])
    for target, prefix in ((False, ""), (True, "target_")):
        assert_close(model.q_logits(latents, actions, target=target), recorded[f"{prefix}q_logits"])
        values = model.q_values(latents, actions, target=target)[..., None]
        torch.testing.assert_close(values, recorded[f"{prefix}q"], rtol=2e-5, atol=5e-6)
    policy = model.policy(latents, torch.zeros_like(actions))
    assert_close(policy.mean, recorded["pi_mean"])
    assert_close(policy.log_std, recorded["pi_log_std"])


@pytest.mark.parity
def test_the_layouts_give_the_same_bits(all_fixtures):
    states = [import_tdmpc2(all_fixtures / f"tdmpc2_layout_{file}.pt").state for file in ("a", "c", "cprime")]
    assert_same_state(states[1], states[0])
    assert_same_state(states[2], states[0])
    source = torch.load(all_fixtures / "tdmpc2_layout_a.pt", map_location="cpu", weights_only=True)["model"]
    assert_same_state(states[0], {name: source[official_name(name, "A")] for name in states[0]})


@pytest.mark.parity
def test_the_layout_from_before_the_release_is_refused_with_the_reason(all_fixtures, tmp_path):
    path = all_fixtures / "tdmpc2_layout_d.pt"
    with pytest.raises(DataError, match="layout from before the release, of which an operation is unknown") as caught:
        import_tdmpc2(path)
    assert "gq download --list tdmpc2" in caught.value.hint
    old = tmp_path / "humanoid-run-3.pt"
    old.write_bytes(path.read_bytes())
    with pytest.raises(DataError) as caught:
        import_tdmpc2(old)
    hint = "these can be read: gq download tdmpc2/humanoid-run-1, gq download tdmpc2/humanoid-run-2"
    assert caught.value.hint == hint


@pytest.mark.parity
def test_the_malicious_file_is_refused_and_runs_nothing(all_fixtures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"asks for io\.open"):
        import_tdmpc2(all_fixtures / "malicious_checkpoint.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parity
@torch.no_grad()
def test_an_episodic_model_brings_its_termination_network(all_fixtures, tmp_path):
    recorded = Recorded(all_fixtures / "tdmpc2_episodic.npz")
    found = imported(tmp_path, recorded.under("w/"))
    assert (found.layout, found.episodic) == ("C", True)
    assert_close(loaded(found).termination_logits(recorded["fwd/z"])[:, None], recorded["fwd/termination_logit"])


# --- shapes and sizes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("episodic", [False, True])
def test_every_parameter_comes_back_from_every_layout(tmp_path, layout, episodic):
    model = random_model(episodic=episodic)
    found = imported(tmp_path, official(model, layout))
    assert_same_state(found.state, dict(model.state_dict()))
    assert (found.layout, found.config, found.episodic) == (layout, TINY, episodic)
    assert (found.observation_dim, found.action_dim) == (OBSERVATION_DIM, ACTION_DIM)
    places = {value.untyped_storage().data_ptr() for value in found.state.values()}
    assert len(places) == len(found.state)  # memory of their own, as safetensors want it


@pytest.mark.parametrize("size", WORLD_MODEL_SIZES)
@pytest.mark.parametrize("task", ["pendulum-swingup", "dog-run"])
def test_every_size_is_told_from_its_shapes(size, task):
    dims = {"observation_dim": resolve_task(task).observation_dim, "action_dim": resolve_task(task).action_dim}
    with torch.device("meta"):
        model = WorldModel(WORLD_MODEL_SIZES[size], **dims)
    state = {official_name(name, "A"): value for name, value in model.state_dict().items()}
    assert infer_shape(Path("x.pt"), state) == (WORLD_MODEL_SIZES[size], *dims.values(), False)


def test_a_whole_file_of_size_1_says_its_size(tmp_path):
    model = WorldModel(WORLD_MODEL_SIZES["1"], observation_dim=223, action_dim=38)
    found = imported(tmp_path, official(model), "dog-run")
    assert found.size == "1"
    assert sum(value.numel() for name, value in found.state.items() if not name.startswith("target_")) == 1_339_387


def test_the_limits_of_the_policy_spread_come_from_the_file(tmp_path):
    state = official(random_model(), "C") | {"log_std_min": torch.tensor(-5.0), "log_std_dif": torch.tensor(6.5)}
    config = imported(tmp_path, state).config
    assert (config.log_std_min, config.log_std_max) == (-5.0, 1.5)
    with pytest.raises(DataError, match="log_std_dif is no plausible number"):
        imported(tmp_path, state | {"log_std_dif": torch.tensor(float("nan"))})
    with pytest.raises(DataError, match="log_std_min is no plausible number"):
        imported(tmp_path, state | {"log_std_min": torch.tensor([-5.0])})
    with pytest.raises(DataError, match="shape that gq has no model for: model"):
        imported(tmp_path, state | {"log_std_dif": torch.tensor(0)})


def test_a_bare_state_dict_is_as_good_and_what_lies_beside_it_is_told(tmp_path):
    model = random_model()
    path = tmp_path / "bare.pt"
    torch.save(official(model), path)
    assert_same_state(import_tdmpc2(path).state, dict(model.state_dict()))
    torch.save({"model": official(model), "step": 7, "optimizer": {"exp_avg": torch.ones(3)}}, path)
    found = import_tdmpc2(path)
    assert found.notes == ("'step', beside the model, was left out", "'optimizer', beside the model, was left out")
    assert_same_state(found.state, dict(model.state_dict()))


# --- every key is used or named ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_key_is_named(tmp_path, layout):
    state = official(random_model(episodic=True), layout)
    needed = [official_name(name, layout) for name in random_model(episodic=True).state_dict()]
    assert set(needed) <= set(state)
    for key in needed if layout == "A" else needed[::3]:
        rest = {other: value for other, value in state.items() if other != key}
        with pytest.raises(DataError) as caught:
            imported(tmp_path, rest)
        message = re.sub(r"_detach_Qs[._]params", "_Qs.params", str(caught.value))  # its copy is what is compared first
        assert key.replace("_Qs.params.0.weight", "_Qs.params.0") in message


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "key",
    [
        *("extra", "_dynamics.3.weight", "_pi.0.ln.running_mean", "_Qs.params.10", "_target_Qs.params.2.ln.weight"),
        *(
            "_Qs.params.3.weight",
            "_Qs2.params.0",
            "_action_masks",
            "_encoder.state.0.bias2",
            "_detach_Qs_params.7.bias",
        ),
    ],
)
def test_a_surplus_key_is_named(tmp_path, layout, key):
    state = official(random_model(), layout) | {key: torch.ones(3)}
    with pytest.raises(DataError) as caught:
        imported(tmp_path, state)
    assert key in str(caught.value)
    assert caught.value.hint


def test_a_surplus_layer_of_the_encoder_does_not_pass_for_one(tmp_path):
    state = official(random_model()) | {"_encoder.state.2.weight": torch.ones(16, 16)}
    with pytest.raises(DataError, match=r"_encoder\.state\.2\.bias is missing|_encoder\.state\.1\.weight has shape"):
        imported(tmp_path, state)


def test_a_wrong_shape_type_or_number_is_named(tmp_path):
    whole = official(random_model(episodic=True))
    for key, value in list(whole.items())[::6]:
        longer = torch.cat([value, value[-1:]])
        for changed in (longer, value[..., None], value[0]):
            with pytest.raises(DataError):
                imported(tmp_path, whole | {key: changed})
        with pytest.raises(DataError, match=f"{key} is of torch.float64, not float32"):
            imported(tmp_path, whole | {key: value.double()})
        broken = value.clone()
        broken.view(-1)[-1] = float("inf")
        with pytest.raises(DataError, match=f"{key} has numbers that are not finite"):
            imported(tmp_path, whole | {key: broken})
        with pytest.raises(DataError):
            imported(tmp_path, whole | {key: "text"})
    with pytest.raises(DataError, match=r"_dynamics\.1\.bias has shape \[11\], the other shapes ask for \[10\]"):
        imported(tmp_path, whole | {"_dynamics.1.bias": torch.ones(11)})


def test_missing_targets_are_copied_and_told_but_not_some_of_them(tmp_path):
    whole = official(random_model())
    online = {key: value for key, value in whole.items() if not key.startswith("_target_")}
    found = imported(tmp_path, online)
    assert found.notes == ("it has no target Q networks: the online ones were copied",)
    for name, value in found.state.items():
        if name.startswith("target_"):
            assert torch.equal(value, found.state[name.removeprefix("target_")])
    with pytest.raises(DataError, match=r"_target_Qs\.params\.0 is missing"):
        imported(tmp_path, online | {"_target_Qs.params.3": whole["_target_Qs.params.3"]})


def test_a_second_copy_that_differs_is_an_error(tmp_path):
    state = official(random_model(), "C")
    state["_detach_Qs_params.1.bias"] = state["_detach_Qs_params.1.bias"] + 1
    with pytest.raises(DataError, match=r"_detach_Qs_params\.1\.bias is not equal"):
        imported(tmp_path, state)


def test_content_where_none_belongs_is_an_error(tmp_path):
    state = official(random_model(), "C'")
    with pytest.raises(DataError, match=r"holds _Qs\.module\.0\.bias, which should be empty"):
        imported(tmp_path, state | {"_Qs.module.0.bias": torch.ones(2)})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "holds no state dict"),
        ({"model": [1]}, "holds no state dict"),
        ({"model": {1: torch.ones(2)}}, "holds no state dict"),
        ({"model": {"\x1b[2J": torch.ones(2)}}, "holds no state dict"),
        ({"model": {}, "more": torch.ones(2)}, "holds the tensor 'more' beside the model"),
        ({}, "has no Q networks"),
        ({"model": {"_encoder.rgb.2.weight": torch.ones(2)}}, "encodes images"),
        ({"model": {"_Qs.params.0": torch.ones(5, 3, 3)}}, "_encoder.state.0.weight is missing"),
    ],
)
def test_other_files_are_refused(tmp_path, content, says):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(DataError) as caught:
        import_tdmpc2(path)
    assert says in str(caught.value)
    assert caught.value.hint
    assert "\x1b" not in str(caught.value)


def test_shapes_that_no_world_model_has_are_refused(tmp_path):
    for config in (replace(TINY, num_bins=2), replace(TINY, latent_dim=12, simplex_dim=4)):
        with pytest.raises(DataError, match="has a shape that gq has no model for"):
            imported(tmp_path, official(random_model(config)))


# --- tasks ------------------------------------------------------------------------------------------------------------

WHOLE = {"observation_dim": 24, "action_dim": 6, "episodic": True}


def multitask_model(num_tasks: int = 30) -> WorldModel:
    """Return a model of many tasks whose embeddings are shorter and longer than 1."""
    model = random_model(replace(TINY, num_tasks=num_tasks, task_dim=5), **WHOLE)
    with torch.no_grad():
        lengths = torch.linspace(0.2, 3, num_tasks)[:, None]
        model.task_embedding.weight.mul_(lengths / model.task_embedding.weight.norm(dim=1, keepdim=True))
    return model


def action_masks(num_tasks: int = 30) -> Tensor:
    """Return the masks that the official code writes; tasks of Meta-World have 4 actions."""
    widths = [CONTROL_TASKS[name].action_dim if name in CONTROL_TASKS else 3 for name in MT30]
    widths += [4] * (num_tasks - 30)
    return (torch.arange(6) < torch.tensor(widths)[:, None]).float()


@pytest.mark.parametrize(
    "task", ["walker-stand", "cheetah-jump", "pendulum-swingup", "cup-spin", "fish-swim", "pendulum-spin"]
)
@torch.no_grad()
def test_one_task_of_many_computes_what_the_whole_model_computes_for_it(tmp_path, task):
    whole = multitask_model()
    whole.task = MT30.index(task)
    found = imported(tmp_path, official(whole), task)
    dims = resolve_task(task)
    assert (found.observation_dim, found.action_dim) == (dims.observation_dim, dims.action_dim)
    assert found.config == TINY
    model = loaded(found)
    generator = torch.Generator().manual_seed(1)
    observations = torch.randn(7, dims.observation_dim, generator=generator)
    actions = torch.rand(7, dims.action_dim, generator=generator) * 2 - 1
    padded_observations = torch.nn.functional.pad(observations, (0, 24 - dims.observation_dim))
    padded_actions = torch.nn.functional.pad(actions, (0, 6 - dims.action_dim))
    latents = whole.encode(padded_observations)
    assert_close(model.encode(observations), latents)
    assert_close(model.next(latents, actions), whole.next(latents, padded_actions))
    assert_close(model.reward_logits(latents, actions), whole.reward_logits(latents, padded_actions))
    assert_close(model.termination_logits(latents), whole.termination_logits(latents))
    for target in (False, True):
        expected = whole.q_logits(latents, padded_actions, target=target)
        assert_close(model.q_logits(latents, actions, target=target), expected)
    ours, theirs = model.policy(latents, actions), whole.policy(latents, padded_actions)
    for field in ("action", "mean", "log_std"):
        assert_close(getattr(ours, field), getattr(theirs, field)[:, : dims.action_dim])


def test_the_tasks_differ(tmp_path):
    state = official(multitask_model())
    walk, run = (imported(tmp_path, state, task).state for task in ("walker-walk", "walker-run"))
    assert torch.equal(walk["encoder.0.weight"], run["encoder.0.weight"])
    assert not torch.equal(walk["encoder.0.bias"], run["encoder.0.bias"])


@pytest.mark.parametrize("num_tasks", [30, 80])
def test_action_masks_are_checked_and_used_up(tmp_path, num_tasks):
    state = official(multitask_model(num_tasks), "C") | {"_action_masks": action_masks(num_tasks)}
    assert imported(tmp_path, state, "cup-catch").action_dim == 2
    wrong = action_masks(num_tasks)
    wrong[MT30.index("cup-catch"), 2] = 1
    for mask in (wrong, wrong[:-1], wrong[:, :-1], "text"):
        with pytest.raises(DataError, match="_action_masks does not give cup-catch its 2 actions"):
            imported(tmp_path, state | {"_action_masks": mask}, "cup-catch")


def test_a_task_must_be_chosen_from_those_in_the_file(tmp_path):
    state = official(multitask_model())
    with pytest.raises(UsageError, match="holds 30 tasks, and none was chosen") as caught:
        imported(tmp_path, state)
    assert "walker-stand, walker-walk" in caught.value.hint
    with pytest.raises(UsageError, match="does not hold dog-run"):
        imported(tmp_path, state, "dog-run")
    with pytest.raises(UsageError, match="there is no task warker-walk") as caught:
        imported(tmp_path, state, "warker-walk")
    assert "walker-walk" in caught.value.hint
    with pytest.raises(DataError, match="holds 70 tasks, in an order that was never published"):
        imported(tmp_path, official(multitask_model(70)), "walker-walk")


def test_a_multitask_model_too_small_for_the_task_is_refused(tmp_path):
    model = random_model(replace(TINY, num_tasks=30, task_dim=5), observation_dim=17, action_dim=6)
    assert imported(tmp_path, official(model), "cheetah-run").observation_dim == 17
    with pytest.raises(DataError, match="too small for walker-walk"):
        imported(tmp_path, official(model), "walker-walk")


def test_a_model_of_one_task_is_checked_against_the_task_that_is_named(tmp_path):
    state = official(random_model())
    assert imported(tmp_path, state, "reacher-easy").action_dim == 2
    with pytest.raises(UsageError, match="is for 6 observations and 2 actions, dog-run has 223 and 38"):
        imported(tmp_path, state, "dog-run")


# --- damage -----------------------------------------------------------------------------------------------------------

HYPOTHESIS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@HYPOTHESIS
@given(bit=st.integers(0, 2**24), length=st.integers(0, 2**24))
def test_a_damaged_file_is_refused_or_gives_the_same_weights(tmp_path, bit, length):
    whole = tmp_path / "whole.pt"
    model = random_model()
    if not whole.exists():
        torch.save({"model": official(model)}, whole)
    data = bytearray(whole.read_bytes())
    short = tmp_path / "short.pt"
    short.write_bytes(data[: length % len(data)])
    with pytest.raises(DataError):
        import_tdmpc2(short)
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    flipped = tmp_path / "flipped.pt"
    flipped.write_bytes(data)
    with suppress(DataError):
        assert_same_state(import_tdmpc2(flipped).state, dict(model.state_dict()))


VALUES = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=3),
    st.lists(st.integers(0, 9), max_size=2),
    st.lists(st.integers(0, 4), max_size=4).map(torch.zeros),
)


@HYPOTHESIS
@given(data=st.data())
def test_any_change_of_keys_and_values_ends_in_a_model_or_a_line_of_text(tmp_path, data):
    layout = data.draw(st.sampled_from(LAYOUTS))
    state = official(random_model(replace(TINY, num_tasks=30, task_dim=2), **WHOLE), layout)
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(state)))
        change = data.draw(st.sampled_from(["drop", "rename", "replace"]))
        value = state.pop(key)
        if change == "rename":
            state[data.draw(st.sampled_from([key + ".0", key.replace("0", "1"), key.replace("_", ""), key[:-1]]))] = (
                value
            )
        elif change == "replace":
            state[key] = data.draw(VALUES)
    with suppress(GqError):
        loaded(imported(tmp_path, state, data.draw(st.sampled_from(["", "walker-walk", "cup-catch"]))))

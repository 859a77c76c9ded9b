"""Settings: where they come from, what is refused and how, and that each of them is read. And the files they go to."""

import ast
import errno
import hashlib
import json
import math
import tomllib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commandline import document
from gq import presets
from gq.config import CONFIGS, BCConfig, DTConfig, RunConfig, to_toml, validate
from gq.errors import GqError, UsageError
from gq.files import atomic_folder, atomic_path, sha256, write_json, write_text
from gq.models.config import SIZES, ModelConfig
from gq.policies.algorithms import discount_of
from gq.settings import flatten, parse_settings, read_config_file, toml_value

SOURCE = Path(__file__).parents[1] / "src" / "gq"
PRESETS: dict[str, RunConfig] = {
    **{size: presets.dt(size) for size in SIZES},
    "bc": presets.bc(),
    "td3bc": presets.td3bc("rebrac"),
}


# --- presets and precedence -------------------------------------------------------------------------------------------


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("[train]\nsteps = 7\nbatch_size = 8\n[optim]\nlearning_rate = 0.5\n")
    given_by_file = flatten(read_config_file(file))
    config = presets.dt("13m").replace(given_by_file | parse_settings(["train.batch_size=9", "train.seed=3"]))
    assert (config.train.steps, config.train.batch_size, config.train.seed) == (7, 9, 3)
    assert config.optim.learning_rate == 0.5
    assert config.optim.warmup_steps == presets.dt("13m").optim.warmup_steps
    assert config.model == SIZES["13m"], "what nobody gave comes from the preset"


def test_replacing_leaves_the_original_alone() -> None:
    base = presets.dt()
    changed = base.replace({"train.steps": 3, "eval.targets": [1, 2]})
    assert base == presets.dt()
    assert changed == replace(base, train=replace(base.train, steps=3), eval=replace(base.eval, targets=(1.0, 2.0)))


@pytest.mark.parametrize("size", SIZES)
def test_a_preset_has_the_name_and_shape_of_its_size(size: str) -> None:
    config = presets.dt(size)
    assert (config.size, config.model, config.algo) == (size, SIZES[size], "dt")
    assert validate(DTConfig, config.to_dict()) == config
    assert config.train.batch_size % config.train.num_micro_batches == 0


def test_behaviour_cloning_takes_the_best_tenth() -> None:
    config = presets.bc()
    assert isinstance(config, BCConfig)
    assert config.data.top_fraction == 0.1
    assert validate(BCConfig, config.to_dict()) == config


def test_an_unknown_size_is_refused_with_suggestions() -> None:
    with pytest.raises(UsageError, match=r"no size 0\.6") as caught:
        presets.dt("0.6")
    assert "0.6b" in caught.value.hint


# --- what is refused --------------------------------------------------------------------------------------------------


def refuse(setting: str, config: RunConfig | None = None) -> UsageError:
    """Return the refusal of a setting; it must be short, name the key and say what to do."""
    with pytest.raises(UsageError) as caught:
        (config or presets.dt()).replace(parse_settings([setting]))
    error = caught.value
    assert error.exit_code == 2
    assert error.hint
    assert "\n" not in str(error) + error.hint
    assert len(str(error)) < 160
    return error


@pytest.mark.parametrize(
    ("setting", "suggestion"),
    [
        ("optim.learning_rat=1", "optim.learning_rate"),
        ("learning_rate=1", "optim.learning_rate"),
        ("train.learning_rate=1", "optim.learning_rate"),
        ("trian.steps=1", "train.steps"),
        ("train.Steps=1", "train.steps"),
        ("context_length=1", "model.context_length"),
        ("eval.epsiodes=3", "eval.num_episodes"),
        ("zzz=1", "train.steps"),
        ("train=1", "train.steps"),
        ("optim.learning_rate.x=1", "optim.learning_rate"),
    ],
)
def test_an_unknown_key_is_refused_with_a_suggestion(setting: str, suggestion: str) -> None:
    error = refuse(setting)
    assert f"there is no setting {setting.partition('=')[0]}" in str(error)
    assert suggestion in error.hint


def test_a_key_of_the_other_algorithm_is_unknown() -> None:
    assert "model.num_heads" in str(refuse("model.num_heads=4", presets.bc()))


def test_an_unknown_key_names_where_it_came_from() -> None:
    with pytest.raises(UsageError, match=r"my\.toml: there is no setting train\.step$"):
        presets.dt().replace({"train.step": 1}, origin="my.toml: ")


@pytest.mark.parametrize(
    "tree", [{"model": {"widht": 3}}, {"data": 3}, {"optimiser": {"learning_rate": 1}}, {"train": {"steps": {"a": 1}}}]
)
def test_unknown_keys_in_nested_values_are_refused(tree: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="there is no setting"):
        validate(DTConfig, tree)


@pytest.mark.parametrize(
    "setting",
    [
        "train.steps=many",
        "train.steps=2.5",
        "train.steps=",
        "train.steps=[1]",
        "log.tensorboard=maybe",
        "data.mode=delay",
        "data.dataset=3",
        "model.backbone=llama",
        "optim.schedule=linear",
        "train.precision=fp16",
        "eval.targets=3",
        "eval.targets=['high']",
        "algo=bc",
    ],
)
def test_a_value_of_the_wrong_type_is_refused(setting: str) -> None:
    key = setting.partition("=")[0]
    error = refuse(setting)
    assert str(error).startswith(key)
    _, _, example = error.hint.partition("for example --set ")
    assert example.startswith(f"{key}=")
    presets.dt().replace(parse_settings([example]))  # what the hint says works


@pytest.mark.parametrize(
    "setting",
    [
        "train.steps=0",
        "train.batch_size=-1",
        "train.num_micro_batches=0",
        "train.seed=-1",
        "train.seed=18446744073709551616",
        "train.log_every=0",
        "data.top_fraction=0",
        "data.top_fraction=1.01",
        "data.return_scale=0",
        "optim.learning_rate=0",
        "optim.weight_decay=-0.1",
        "optim.warmup_steps=-1",
        "optim.gradient_clip=-0.25",
        "eval.every=-1",
        "eval.num_episodes=0",
        "checkpoint.every=-5",
        "checkpoint.keep=0",
        "model.embed_dim=0",
        "model.num_layers=0",
        "model.dropout=1.0",
        "model.dropout=-0.1",
        "model.mlp_ratio=0",
        "model.mlp_ratio=0.001",
        "model.context_length=0",
        "model.rope_theta=1",
    ],
)
def test_a_value_out_of_range_is_refused(setting: str) -> None:
    assert setting.partition("=")[0] in str(refuse(setting))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "key", ["optim.learning_rate", "optim.weight_decay", "data.return_scale", "model.mlp_ratio", "model.rope_theta"]
)
def test_a_number_that_is_not_finite_is_refused(key: str, value: str) -> None:
    assert key in str(refuse(f"{key}={value}"))


@pytest.mark.parametrize("value", ["[nan]", "[100, inf]"])
def test_a_target_that_is_not_finite_is_refused(value: str) -> None:
    assert "eval.targets" in str(refuse(f"eval.targets={value}"))


@pytest.mark.parametrize(
    "setting",
    [
        "train.seed=0",
        "optim.warmup_steps=0",
        "optim.gradient_clip=0",
        "optim.weight_decay=0",
        "eval.every=0",
        "checkpoint.every=0",
        "model.dropout=0",
        "data.top_fraction=1",
        "model.head_dim=0",
    ],
)
def test_the_ends_of_the_ranges_are_allowed(setting: str) -> None:
    key, _, value = setting.partition("=")
    assert flatten(presets.dt().replace(parse_settings([setting])).to_dict())[key] == int(value)


@pytest.mark.parametrize(
    ("settings_", "problem"),
    [
        (["model.num_heads=3"], "not a multiple of model.num_heads 3"),
        (["model.num_kv_heads=3"], "not a multiple of model.num_kv_heads 3"),
        (["model.backbone=gpt2"], "no grouped queries"),
        (["model.head_dim=33"], "even head width, not 33"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings_: list[str], problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        presets.dt().replace(parse_settings(settings_))
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_settings_that_fit_together_only_as_a_whole_are_taken_as_a_whole() -> None:
    config = presets.dt().replace(parse_settings(["model.backbone=gpt2", "model.num_kv_heads=4"]))
    assert config.model.problem() is None


# --- literals and files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("train.steps=2000", "train.steps", 2000),
        ("train.steps = 2_000", "train.steps", 2000),
        ("optim.learning_rate=3e-4", "optim.learning_rate", 3e-4),
        ("log.tensorboard=true", "log.tensorboard", True),
        ("eval.targets=[1800, 3600.0]", "eval.targets", [1800, 3600.0]),
        ("eval.targets=[]", "eval.targets", []),
        ('data.mode="delayed"', "data.mode", "delayed"),
        ("data.mode=delayed", "data.mode", "delayed"),
        ("data.dataset=d4rl/hopper-medium-v2", "data.dataset", "d4rl/hopper-medium-v2"),
        ("data.dataset=/a folder/x=1.hdf5", "data.dataset", "/a folder/x=1.hdf5"),
        ("data.dataset=", "data.dataset", ""),
        (r"data.dataset=C:\new\table.hdf5", "data.dataset", r"C:\new\table.hdf5"),
        ("train.device=cuda:1", "train.device", "cuda:1"),
    ],
)
def test_the_right_side_of_a_setting_is_a_toml_literal_or_text(setting: str, key: str, value: Any) -> None:
    assert parse_settings([setting]) == {key: value}
    presets.dt().replace({key: value})


def test_the_last_of_several_settings_wins() -> None:
    assert parse_settings(["train.seed=1", "train.seed=2"]) == {"train.seed": 2}


@pytest.mark.parametrize("setting", ["train.steps", "", "train.steps:3"])
def test_a_setting_without_a_value_is_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="has no value") as caught:
        parse_settings([setting])
    assert "--set train.steps=2000" in caught.value.hint


def test_a_file_that_is_missing_or_not_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("train.steps = = 3")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    cases = {"none.toml": "cannot read", "bad.toml": "is not TOML", "binary.toml": "is not TOML", ".": "cannot read"}
    for name, message in cases.items():
        with pytest.raises(UsageError, match=message) as caught:
            read_config_file(tmp_path / name)
        assert caught.value.hint


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_its_own_file(name: str, tmp_path: Path) -> None:
    config = PRESETS[name]
    write_text(tmp_path / "config.toml", to_toml(config))
    tree = read_config_file(tmp_path / "config.toml")
    assert validate(CONFIGS[tree["algo"]], tree) == config
    assert flatten(tree).keys() == flatten(config.to_dict()).keys(), "the file says everything"


plain_text = st.text(st.characters(blacklist_categories=("Cc", "Cs")), max_size=20)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(PRESETS)),
    plain_text,
    st.lists(st.floats(-1e9, 1e9), max_size=4),
    st.floats(1e-12, 1e6),
    st.integers(0, 2**40),
    st.booleans(),
    st.sampled_from(["normal", "delayed"]),
)
def test_any_configuration_survives_its_file(
    name: str, dataset: str, targets: list[float], learning_rate: float, seed: int, board: bool, mode: str
) -> None:
    values = {
        "data.dataset": dataset,
        "data.mode": mode,
        "eval.targets": targets,
        "optim.learning_rate": learning_rate,
        "train.seed": seed,
        "log.tensorboard": board,
        "log.wandb_project": dataset,
    }
    config = PRESETS[name].replace(values)
    assert validate(type(config), tomllib.loads(to_toml(config))) == config
    assert config.eval.targets == tuple(targets)


@pytest.mark.parametrize("value", [True, 0, -3, 1e-05, 1e22, 8 / 3, "", 'a "b" \\ c', "é", [1.5, 2.0], [], ["a", "b"]])
def test_toml_literals_are_read_back(value: Any) -> None:
    assert tomllib.loads(f"value = {toml_value(value)}")["value"] == value


# --- no setting without effect ----------------------------------------------------------------------------------------

# What a section's values are called where they are read, besides `config.SECTION.KEY`.
OTHER_NAMES = {name: {"config"} for name in ("model", "update", "planner", "critic", "log", "")}


@cache
def attributes_read() -> set[tuple[str, str]]:
    """Return (name before the dot, attribute) of every attribute that the sources read, but for gq/config.py."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        if path == SOURCE / "config.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                name = (
                    owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
                )
                is_property = name == "self" and path.parent.name == "models" and path.name.endswith("config.py")
                found.add(("config" if is_property else name, node.attr))
    return found


KEYS = sorted({key for kind in CONFIGS.values() for key in flatten(kind().to_dict())})


@pytest.mark.parametrize("key", KEYS)
def test_every_setting_is_read_somewhere(key: str) -> None:
    section, _, name = key.rpartition(".")
    owners = OTHER_NAMES.get(section, set()) | {section}
    assert any((owner, name) in attributes_read() for owner in owners), f"{key} is accepted and has no effect"


def test_a_setting_that_nothing_reads_would_be_found() -> None:
    assert ("train", "steps") in attributes_read()
    assert ("train", "num_workers") not in attributes_read()
    assert len(KEYS) > 35


# --- files ------------------------------------------------------------------------------------------------------------


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.json"
    write_text(path, "old")
    write_json(path, {"a": [1, 2.5], "b": None})
    assert json.loads(path.read_text()) == {"a": [1, 2.5], "b": None}
    assert path.read_text().endswith("}\n")
    assert names_in(path.parent) == ["a.json"]


@pytest.mark.parametrize("error", [RuntimeError("stopped"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(type(error)), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half of the ne")
        assert path.read_text() == "old", "nobody sees the new file before it is complete"
        raise error
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_a_full_disk_is_an_error_with_a_next_step(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(GqError, match="No space left on device") as caught, atomic_path(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "--out" in caught.value.hint
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_a_file_in_the_place_of_a_folder_is_an_error_with_a_next_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for attempt in (tmp_path / "file" / "a.txt", tmp_path / "file" / "folder" / "a.txt"):
        with pytest.raises(GqError, match="cannot write"):
            write_text(attempt, "x")
        with pytest.raises(GqError, match="cannot write"), atomic_folder(attempt):
            pass
    assert names_in(tmp_path) == ["file"]


def test_json_without_a_meaning_is_never_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"mean": 1.0})
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"mean": math.nan})
    assert json.loads((tmp_path / "a.json").read_text()) == {"mean": 1.0}


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "step-1") as temporary:
            (temporary / content).write_text(content)
            assert not (tmp_path / "step-1" / "new").exists()
    assert names_in(tmp_path / "step-1") == ["new"]
    assert names_in(tmp_path) == ["step-1"]


def test_a_folder_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "step-1") as temporary:
        (temporary / "old").write_text("old")
    with pytest.raises(GqError, match="cannot write"), atomic_folder(tmp_path / "step-1") as temporary:  # noqa: PT012
        (temporary / "new").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names_in(tmp_path / "step-1") == ["old"]
    assert names_in(tmp_path) == ["step-1"]


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    (tmp_path / "empty").touch()
    assert sha256(tmp_path / "empty").startswith("e3b0c44298fc1c14")


def test_a_shape_is_compared_by_value() -> None:
    assert ModelConfig() == ModelConfig()
    assert ModelConfig(embed_dim=64).attention_head_dim == 16
    assert ModelConfig(head_dim=10).attention_head_dim == 10
    assert ModelConfig(mlp_ratio=8 / 3, embed_dim=1536, num_heads=12, num_kv_heads=6).mlp_dim == 4096


# --- TD-MPC2's published settings by task -----------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["HalfCheetah-v5", "walker2d", "InvertedPendulum-v5", "package.module:Id-v0"])
def test_tasks_outside_of_deepmind_control_have_the_settings_that_the_original_has_there(task: str) -> None:
    config = presets.tdmpc2("1", task)
    found = (config.update.temporal_decay, config.train.discount_max, config.train.replay, config.planner.termination)
    assert found == (0.7, 0.99, "episodes", "cut")


@pytest.mark.parametrize("task", ["", "dog-run", "ball_in_cup-catch"])
def test_deepmind_controls_tasks_keep_the_settings_of_all_single_tasks(task: str) -> None:
    config = presets.tdmpc2("1", task)
    assert (config.update.temporal_decay, config.train.discount_max, config.train.replay) == (0.5, 0.995, "steps")


@pytest.mark.parametrize(
    ("task", "changes", "expected"),
    [
        ("HalfCheetah-v5", {}, 0.99),  # 1,000 decisions: 0.995, were it not limited
        ("Reacher-v5", {}, 0.95),  # 50 decisions: 0.9, raised
        ("dog-run", {}, 0.99),  # 500 decisions
        ("HalfCheetah-v5", {"train.discount_max": 0.995}, 0.995),
        ("HalfCheetah-v5", {"train.discount": 0.9}, 0.9),
    ],
)
def test_the_discount_follows_from_the_task(task: str, changes: dict[str, float], expected: float) -> None:
    assert discount_of(presets.tdmpc2("1", task).replace(changes)) == pytest.approx(expected)


def test_the_command_line_finds_the_settings_by_task_and_what_is_given_wins() -> None:
    plan = document("train", "tdmpc2", "--task", "walker2d", "--set", "planner.termination=soft", "--dry-run")
    assert plan["config"]["update"]["temporal_decay"] == 0.7
    assert plan["config"]["planner"]["termination"] == "soft"

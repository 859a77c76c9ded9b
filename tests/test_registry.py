"""The names that people type, and what the registry says of datasets."""

import json
import os
import re
import subprocess
import sys

import pytest
from pydantic import TypeAdapter

from gq.datasets.catalog import ENTRIES, GROUPS, TDMPC2, DatasetEntry
from gq.datasets.names import all_levels, known_ids, resolve
from gq.envs.tasks import TASKS
from gq.errors import UsageError
from gq.policies.packaged import NAMES

HOPPER = "mujoco/hopper/medium-v0"


@pytest.mark.parametrize(
    ("name", "identifier"),
    [
        ("hopper", HOPPER),
        ("Hopper", HOPPER),
        ("hopper/medium", HOPPER),
        ("hopper-medium", HOPPER),
        ("hopper/medium-v0", HOPPER),
        ("mujoco/hopper/medium", HOPPER),
        (HOPPER, HOPPER),
        ("minari/hopper", HOPPER),
        ("walker", "mujoco/walker2d/medium-v0"),
        ("humanoid", "mujoco/humanoid/medium-v0"),
        ("humanoid_expert", "mujoco/humanoid/expert-v0"),
        ("humanoid_medium-v2", "mujoco/humanoid/medium-v0"),
        ("ant/simple", "mujoco/ant/simple-v0"),
        ("ant-expert", "mujoco/ant/expert-v0"),
        ("InvertedDoublePendulum", "mujoco/inverteddoublependulum/medium-v0"),
        ("humanoidstandup/expert", "mujoco/humanoidstandup/expert-v0"),
        ("builtin/hopper", "builtin/hopper/medium"),
        ("builtin/hopper/medium", "builtin/hopper/medium"),
        ("builtin/hopper-expert", "builtin/hopper/expert"),
        ("builtin/humanoid/medium_replay", "builtin/humanoid/medium-replay"),
        ("hopper-medium-v2", "d4rl/hopper-medium-v2"),
        ("hopper-medium-v0", "d4rl/hopper-medium-v0"),
        ("hopper-medium-replay-v0", "d4rl/hopper-medium-replay-v0"),
        ("hopper_mixed-v0", "d4rl/hopper-medium-replay-v0"),
        ("halfcheetah-mixed-v0", "d4rl/halfcheetah-medium-replay-v0"),
        ("walker_mixed", "d4rl/walker2d-medium-replay-v0"),
        ("hopper_medium_replay-v2", "d4rl/hopper-medium-replay-v2"),
        ("hopper-medium-replay", "d4rl/hopper-medium-replay-v2"),
        ("walker2d-random", "d4rl/walker2d-random-v2"),
        ("Walker2d-Medium-Expert-v1", "d4rl/walker2d-medium-expert-v1"),
        ("ant-random-expert", "d4rl/ant-random-expert-v0"),
        ("d4rl/ant_random_expert", "d4rl/ant-random-expert-v0"),
        ("d4rl/hopper", "d4rl/hopper-medium-v2"),
        ("d4rl/hopper-v0", "d4rl/hopper-medium-v0"),
        ("d4rl/hopper/medium/v1", "d4rl/hopper-medium-v1"),
        ("d4rl/hopper-full-replay-v2", "d4rl/hopper-full-replay-v2"),
        ("tdmpc2/dog-run-1", "tdmpc2/dog-run-1"),
        ("tdmpc2/dog-run", "tdmpc2/dog-run-1"),
        ("tdmpc2/cartpole-balance", "tdmpc2/cartpole-balance-3"),  # seeds 1 and 2 cannot be evaluated
        ("tdmpc2/walker-walk-backwards-2", "tdmpc2/walker-walk-backwards-2"),
        ("tdmpc2/mt80", "tdmpc2/mt80-5M"),
        ("tdmpc2/mt80-317m", "tdmpc2/mt80-317M"),
    ],
)
def test_ids_and_short_forms_resolve(name: str, identifier: str) -> None:
    assert resolve(name).id == identifier


def test_every_id_resolves_to_itself() -> None:
    assert [resolve(identifier).id for identifier in ENTRIES] == list(ENTRIES)


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("hoper", "hopper"),
        ("humanoid/meduim", "humanoid/medium"),
        ("builtin/swimmer", "swimmer"),
        ("hopper-v5", "hopper"),
        ("mujoco/hopper/medium-v2", HOPPER),
        ("builtin/hopper/simple", "builtin/hopper/medium"),
        ("builtin/hopper/medium-v0", "builtin/hopper/medium"),
        ("hopper-medium-v3", "d4rl/hopper-medium-v2"),
        ("hopper-full-replay-v0", "d4rl/hopper-full-replay-v2"),
        ("humanoid-medium-replay-v2", "builtin/humanoid/medium-replay"),
        ("tdmpc2/dog-run-4", "tdmpc2/dog-run-"),
        ("zzz", "known: hopper, walker2d"),
        ("", "known: hopper, walker2d"),
        ("/", "known: hopper, walker2d"),
    ],
)
def test_an_unknown_name_is_refused_with_suggestions(name: str, suggested: str) -> None:
    with pytest.raises(UsageError, match=f"there is no dataset {name}") as caught:
        resolve(name)
    assert suggested in caught.value.hint
    assert caught.value.exit_code == 2


def test_what_d4rl_never_had_and_a_bare_source_are_named() -> None:
    with pytest.raises(UsageError, match="D4RL has no Humanoid") as caught:
        resolve("d4rl/humanoid-medium-v2")
    assert "gq download humanoid" in caught.value.hint
    with pytest.raises(UsageError, match="tdmpc2 is not a dataset's name") as caught:
        resolve("tdmpc2")
    assert caught.value.hint == "see gq download --list tdmpc2"


def test_a_level_beside_the_name() -> None:
    assert resolve("humanoid", level="Expert").id == "mujoco/humanoid/expert-v0"
    assert resolve("d4rl/walker2d", level="medium_replay").id == "d4rl/walker2d-medium-replay-v2"
    assert resolve("tdmpc2/dog-run", level="3").id == "tdmpc2/dog-run-3"
    with pytest.raises(UsageError, match="hopper-medium says its level already"):
        resolve("hopper-medium", level="expert")
    with pytest.raises(UsageError, match="mujoco/hopper has no level medium-replay") as caught:
        resolve("hopper", level="medium-replay")  # never another source's data unasked
    assert "simple, medium, expert" in caught.value.hint
    assert "builtin/hopper/medium-replay and d4rl/hopper-medium-replay-v2" in caught.value.hint
    with pytest.raises(UsageError, match="there is no dataset zzz"):
        resolve("zzz", level="medium")


def test_all_levels_of_an_environment() -> None:
    assert [entry.level for entry in all_levels("humanoid")] == ["simple", "medium", "expert"]
    assert [entry.level for entry in all_levels("builtin/ant")] == ["medium", "medium-replay", "expert"]
    assert len(all_levels("d4rl/ant")) == 6
    assert {entry.id for entry in all_levels("d4rl/ant-v0")} >= {"d4rl/ant-random-expert-v0", "d4rl/ant-medium-v0"}
    assert [entry.id for entry in all_levels("tdmpc2/dog-run")] == [f"tdmpc2/dog-run-{seed}" for seed in (1, 2, 3)]
    with pytest.raises(UsageError, match="hopper-medium-v2 is one level"):
        all_levels("hopper-medium-v2")
    with pytest.raises(UsageError, match="there is no dataset hoper"):
        all_levels("hoper")


def test_the_catalog_holds_what_its_types_say() -> None:
    document = json.dumps([vars(entry) for entry in ENTRIES.values()])
    TypeAdapter(list[DatasetEntry]).validate_json(document, strict=True)
    assert [entry.id for entry in ENTRIES.values() if entry.kind == "builtin"] == NAMES
    for entry in ENTRIES.values():
        assert entry.size_bytes > 0 or entry.id.startswith("D4RL/")  # of which nobody says the sizes
        assert entry.return_std is None or entry.return_mean is not None
        assert (entry.return_mean is None) == (entry.returns_source == "")
        assert len(entry.remote_paths) == {"builtin": 0, "minari": 2, "d4rl": 1, "tdmpc2": 1}[entry.kind]


def test_the_registry_is_complete() -> None:
    kinds = [entry.kind for entry in ENTRIES.values()]
    assert {kind: kinds.count(kind) for kind in kinds} == {"builtin": 15, "minari": 33 + 29, "d4rl": 69, "tdmpc2": 327}
    assert {domain: len(tasks) for domain, tasks in TDMPC2["domains"].items()} == {
        "dmcontrol": 39,
        "metaworld": 50,
        "maniskill2": 5,
        "myosuite": 10,
    }
    assert len(known_ids()) == 15 + 33 + 29 + 69  # checkpoints are no datasets
    assert known_ids()[0].startswith("builtin/")
    assert len({entry.path for entry in ENTRIES.values()}) == len(ENTRIES)
    assert all(entry.task in TASKS for entry in ENTRIES.values() if entry.task and entry.kind != "tdmpc2")
    assert sum(len(levels) for levels in GROUPS.values()) == len(ENTRIES)


@pytest.mark.parametrize(
    ("name", "remote_path"),
    [
        ("hopper-medium-v0", "gym_mujoco/hopper_medium.hdf5"),
        ("hopper-medium-replay-v0", "gym_mujoco/hopper_mixed.hdf5"),
        ("walker2d-medium-replay-v0", "gym_mujoco/walker_mixed.hdf5"),
        ("walker2d-medium-expert-v0", "gym_mujoco/walker2d_medium_expert.hdf5"),
        ("ant-random-expert-v0", "gym_mujoco/ant_random_expert.hdf5"),
        ("walker2d-medium-replay-v1", "gym_mujoco_v1/walker2d_medium_replay-v1.hdf5"),
        ("hopper-medium-replay-v2", "gym_mujoco_v2/hopper_medium_replay-v2.hdf5"),
        ("halfcheetah-full-replay-v2", "gym_mujoco_v2/halfcheetah_full_replay-v2.hdf5"),
        ("humanoid/expert", "datasets/farama-minari/mujoco/resolve/main/humanoid/expert-v0/data/main_data.hdf5"),
        ("tdmpc2/dog-run-1", "nicklashansen/tdmpc2/resolve/main/dmcontrol/dog-run-1.pt"),
        ("tdmpc2/mw-assembly-3", "nicklashansen/tdmpc2/resolve/main/metaworld/mw-assembly-3.pt"),
        ("tdmpc2/myo-hand-pose-hard-1", "nicklashansen/tdmpc2/resolve/main/myosuite/myo-hand-pose-hard-1.pt"),
        ("tdmpc2/mt30-317M", "nicklashansen/tdmpc2/resolve/main/multitask/mt30-317M.pt"),
        ("builtin/hopper/expert", None),
    ],
)
def test_entries_say_where_their_files_are(name: str, remote_path: str | None) -> None:
    assert (resolve(name).remote_paths[-1:] or (None,))[0] == remote_path


def test_entries_say_task_place_and_size(own_home) -> None:
    entry = resolve("humanoid/expert")
    assert (entry.kind, entry.task, entry.level) == ("minari", "Humanoid-v5", "expert")
    assert entry.path == own_home / "datasets" / "minari" / "humanoid" / "expert.hdf5"
    assert (entry.size_bytes, entry.size_is_exact, entry.sha256_start) == (2_946_805_796, True, "8253be69")
    assert resolve("humanoid").size_bytes == 1_000_000 * (8 * 348 + 4 * 17 + 10)
    assert not resolve("humanoid").size_is_exact
    assert entry.canonical_bytes == 1_000_000 * (4 * 348 + 4 * 17 + 6)
    assert resolve("reacher").num_transitions == 500_000
    assert resolve("hopper-medium-expert-v0").num_transitions == 1_200_919
    assert resolve("builtin/hopper/expert").path == own_home / "datasets" / "builtin" / "hopper" / "expert.hdf5"
    assert resolve("hopper-medium-v2").path == own_home / "datasets" / "d4rl" / "hopper" / "medium-v2.hdf5"
    assert resolve("tdmpc2/dog-run-1").path == own_home / "datasets" / "tdmpc2" / "dog-run-1.pt"
    assert resolve("tdmpc2/dog-run-1").canonical_bytes == 0


def test_entries_say_returns_with_their_source_and_the_licence() -> None:
    hopper, ant = resolve("hopper"), resolve("ant")
    assert (hopper.return_mean, hopper.return_std, hopper.returns_source) == (2818, 877, "printed by others")
    assert (ant.return_mean, ant.return_std) == (6200, None)
    assert "curve" in ant.returns_source
    assert (resolve("ant/expert").return_mean, resolve("ant/expert").returns_source) == (None, "")
    assert resolve("builtin/hopper/expert").return_mean == 3368
    licences = {entry.kind: entry.licence for entry in ENTRIES.values()}
    assert licences == {"builtin": "MIT", "minari": "none declared", "d4rl": "CC BY 4.0", "tdmpc2": "MIT"}


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("hopper-medium-v1", "#86.*#76"),
        ("hopper-random-v1", "#86"),
        ("hopper-medium-replay-v2", "#162"),
        ("walker2d-medium-replay-v1", "#162"),
        ("hopper-medium-expert-v0", "#19"),
        ("ant-medium-v2", "#143"),
        ("walker2d-medium-v0", "may not be flagged"),
        ("swimmer/simple", "may not have it"),
        ("tdmpc2/humanoid-run-3", "no published code"),
        ("tdmpc2/mt70-5M", "not every size"),
    ],
)
def test_known_defects_are_in_the_registry(name: str, known: str) -> None:
    assert re.search(known, resolve(name).note)


@pytest.mark.parametrize("name", ["hopper-medium-v2", "walker2d-medium-expert-v2", "humanoid", "tdmpc2/dog-run-1"])
def test_sound_data_have_no_note(name: str) -> None:
    assert resolve(name).note == ""


def test_the_registry_loads_nothing_heavy() -> None:
    modules = "gq.datasets.names, gq.datasets.cache"
    code = f"import sys, {modules}; print({{'numpy', 'h5py', 'torch', 'mujoco'}} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("D4RL/antmaze/umaze-v1", "D4RL/antmaze/umaze-v1"),
        ("d4rl/antmaze/large-diverse-v1", "D4RL/antmaze/large-diverse-v1"),
        ("antmaze-medium-play", "D4RL/antmaze/medium-play-v1"),
        ("minari/pointmaze/umaze-dense-v2", "D4RL/pointmaze/umaze-dense-v2"),
        ("pen/human", "D4RL/pen/human-v2"),
        ("kitchen_complete-v2", "D4RL/kitchen/complete-v2"),
    ],
)
def test_sets_of_robotics_are_found_under_all_spellings(name: str, expected: str) -> None:
    entry = resolve(name)
    assert entry.id == expected
    assert (
        entry.remote_paths[-1]
        == f"datasets/farama-minari/{expected.replace('D4RL', 'D4RL/resolve/main')}/data/main_data.hdf5"
    )


@pytest.mark.parametrize("name", ["antmaze-umaze-v2", "antmaze-expert", "builtin/pen/human"])
def test_what_minari_has_not_of_robotics_is_unknown(name: str) -> None:
    with pytest.raises(UsageError):
        resolve(name)

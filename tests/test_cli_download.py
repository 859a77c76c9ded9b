"""`gq download` as a user meets it: several datasets, the list, plans, verification and removal."""

import json
from pathlib import Path
from typing import Any

import pytest

from commandline import gq, gq_child
from downloading import D4RL_HOPPER, HOPPER, Site, write_d4rl, write_minari
from gq.datasets.catalog import ENTRIES
from gq.datasets.names import resolve

BUILTIN = "builtin/hopper/medium"


@pytest.fixture
def site(site: Site) -> Site:
    return site.start()


def succeed(*arguments: Any) -> Any:
    result = gq("download", *arguments)
    assert result.exit_code == 0, result.stderr
    return result


def document(*arguments: Any) -> Any:
    return json.loads(succeed(*arguments, "--json").stdout)


def refused(*arguments: Any, exit_code: int = 2) -> str:
    result = gq("download", *arguments)
    assert result.exit_code == exit_code, result.stdout + result.stderr
    return result.stderr


# Getting


def test_an_environment_is_its_medium_and_the_other_levels_are_told(site: Site) -> None:
    result = succeed("hopper")
    assert result.stdout == f"{resolve('hopper').path}\n"
    begin, note, other = result.stderr.splitlines()
    assert begin == f"{HOPPER}: about 110 MB from {site.url}/{resolve('hopper').remote_paths[1]}"
    assert note.startswith(f"{HOPPER}: 666 transitions, 12 episodes, return ")
    assert other == (
        "this was medium; gq download hopper --level simple (about 110 MB), --level expert (about 110 MB), or --all"
    )
    assert "--level" not in succeed("hopper/medium").stderr
    assert "--level" not in succeed("hopper", "--level", "medium").stderr
    assert "--level" not in succeed("hopper", "-q").stderr


@pytest.mark.usefixtures("site")
def test_several_at_once() -> None:
    result = succeed("hopper", "hopper-medium-v2", "hopper/medium")  # the last is the first again
    paths = [str(resolve(name).path) for name in (HOPPER, D4RL_HOPPER)]
    assert result.stdout.splitlines() == paths
    assert "2 datasets, 2 of them to get: about 251 MB in all" in result.stderr
    printed = document("hopper", "hopper-medium-v2")
    assert [(one["id"], one["path"], one["was_cached"]) for one in printed["datasets"]] == [
        (HOPPER, paths[0], True),
        (D4RL_HOPPER, paths[1], True),
    ]
    single = document("hopper")
    assert single == printed["datasets"][0]
    assert {"id", "path", "task", "num_transitions", "num_episodes", "return_mean", "return_std"} <= single.keys()


def test_all_levels_of_one_environment(site: Site) -> None:
    for level in ("simple", "expert"):
        write_minari(site.root / f"farama-minari/mujoco/hopper/{level}-v0/data")
    result = succeed("hopper", "--all")
    assert result.stderr.splitlines()[0] == "3 datasets, 3 of them to get: about 330 MB in all"
    assert len(result.stdout.splitlines()) == 3
    assert "this was" not in result.stderr
    assert [one["was_cached"] for one in document("hopper", "--all")["datasets"]] == [True] * 3


def test_a_level_and_a_repair_note(site: Site) -> None:
    write_d4rl(site.root / "gym_mujoco_v2" / "hopper_medium_replay-v2.hdf5")
    result = succeed("d4rl/hopper", "--level", "medium-replay")
    assert "look at it: gq repair d4rl/hopper-medium-replay-v2" in result.stderr


@pytest.mark.usefixtures("site")
def test_a_name_that_is_wrong_stops_before_anything_is_fetched() -> None:
    assert "there is no dataset hoper" in refused("hopper", "hoper")
    assert not resolve("hopper").path.exists()


@pytest.mark.usefixtures("site")
def test_offline_is_said() -> None:
    assert "--offline forbids the network" in refused("hopper", "--offline", exit_code=1)
    succeed("hopper")
    succeed("hopper", "--offline")
    succeed(BUILTIN, "--offline", "--transitions", "60")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--list", "--verify"], "--list and --verify do not go together"),
        (["hopper", "--remove", "--dry-run"], "--remove and --dry-run do not go together"),
        (["hopper", "--level", "expert", "--all"], "--level and --all do not go together"),
        (["--all"], "--level and --all need an environment"),
        (["--remove"], "nothing named to remove"),
        (["--dry-run"], "no dataset given"),
        (["hopper", "--level", "medium-replay"], "mujoco/hopper has no level medium-replay"),
        (["hopper-medium-v2", "--all"], "hopper-medium-v2 is one level"),
        (["--list", "zzz"], "no dataset fits zzz"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: list[str], message: str) -> None:
    stderr = refused(*arguments)
    assert f"error: {message}" in stderr
    assert "hint: " in stderr


# The list


@pytest.mark.usefixtures("site")
def test_the_list_has_size_rows_returns_licence_and_what_is_cached() -> None:
    rows = {line.split()[0]: line for line in succeed("--list").stdout.splitlines()}
    assert rows["dataset"].split() == ["dataset", "size", "rows", "return", "licence", "cached"]
    assert rows["mujoco/humanoid/expert-v0"].split(maxsplit=1)[1].split() == (
        ["2.95", "GB", "~1,000,000", "~10600", "none", "declared", "no"]
    )
    assert rows[HOPPER].split()[1:] == ["~110", "MB", "~1,000,000", "2818", "±", "877", "none", "declared", "no"]
    assert len(rows) < 120
    result = succeed("--list")
    assert result.stdout.splitlines()[-1].startswith("tdmpc2: 327 more with --list tdmpc2")
    assert "read off a training curve" in result.stderr


def test_what_is_cached_is_listed_with_what_was_counted(site: Site) -> None:
    write_d4rl(site.root / "gym_mujoco" / "walker_mixed.hdf5", widths=(17, 6))
    succeed("walker2d-medium-replay-v0")
    (row,) = [
        line for line in succeed("--list").stdout.splitlines() if line.startswith("d4rl/walker2d-medium-replay-v0")
    ]
    assert row.split()[3] == "600"  # exact, and not folded away
    assert "~" not in row
    assert row.split()[-1] == "yes"
    (known,) = document("--list", "cached")["datasets"]
    assert (known["id"], known["cached"], known["num_transitions"]) == ("d4rl/walker2d-medium-replay-v0", True, 600)
    assert known["returns_source"] == "counted in the file"
    resolve("walker_mixed").path.write_bytes(b"damage")
    (known,) = document("--list", "walker2d", "replay", "v0")["datasets"]
    assert (known["cached"], known["state"]) == (False, "damaged")


def test_the_list_is_filtered_by_words() -> None:
    assert succeed("--list", "dog-run", "-q").stdout.split() == [f"tdmpc2/dog-run-{seed}" for seed in (1, 2, 3)]
    assert succeed("--list", "HUMANOID", "expert", "-q").stdout.split() == [
        "builtin/humanoid/expert",
        "mujoco/humanoid/expert-v0",
        "mujoco/humanoidstandup/expert-v0",
    ]
    assert len(succeed("--list", "v1").stdout.splitlines()) == 1 + 24 + 6  # D4RL's, and Minari's of antmaze
    everything = document("--list")["datasets"]
    assert [one["id"] for one in everything] == list(ENTRIES)
    assert everything[0].keys() >= {"id", "task", "size_bytes", "num_transitions", "return_mean", "licence", "cached"}


# Plans


def test_a_plan_says_what_from_where_and_how_large_and_does_nothing(
    site: Site, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    result = succeed("humanoid", "builtin/hopper", "--dry-run")
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert lines[0] == "mujoco/humanoid/medium-v0: fetch, about 2.86 GB, none declared"
    assert lines[1].startswith("from http://127.0.0.1:9/datasets/farama-minari/mujoco/resolve/main/humanoid/medium-v0/")
    assert lines[2] == f"to   {resolve('humanoid').path}"
    assert lines[3] == f"{BUILTIN}: simulate, about 6.2 MB, MIT"
    assert lines[-1] == "about 2.87 GB in all; nothing was done"
    assert not own_home.exists()
    assert site.servers[-1].log == []
    printed = document(BUILTIN, "--dry-run", "--transitions", "200000")
    assert printed["total_bytes"] == 2 * resolve(BUILTIN).size_bytes
    assert printed["datasets"][0]["action"] == "simulate"


def test_a_plan_for_what_is_cached(site: Site) -> None:
    succeed("hopper")
    assert document("hopper", "--dry-run")["total_bytes"] == 0
    assert document("hopper", "--dry-run", "--force")["total_bytes"] == site.size


# Verification


@pytest.mark.usefixtures("site")
def test_verification_names_what_is_damaged_and_how_to_repair_it() -> None:
    assert "the cache holds no datasets" in succeed("--verify").stdout
    succeed("hopper", "hopper-medium-v2")
    assert [line.split() for line in succeed("--verify").stdout.splitlines()[1:]] == [
        [HOPPER, "sound"],
        [D4RL_HOPPER, "sound"],
    ]
    path = resolve("hopper").path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result = gq("download", "--verify", "--json")
    assert result.exit_code == 1
    printed = json.loads(result.stdout)
    assert printed["num_damaged"] == 1
    assert [one["sound"] for one in printed["datasets"]] == [False, True]
    assert printed["datasets"][0]["fix"] == f"gq download {HOPPER}"
    assert result.stderr == f"error: 1 of 2 not sound: {HOPPER}\nhint: gq download {HOPPER}\n"
    succeed("--verify", "hopper-medium-v2")
    assert gq("download", "--verify", "-q").stdout == f"{HOPPER}\n"
    succeed(HOPPER)
    succeed("--verify")
    assert "not in the cache" in gq("download", "--verify", "humanoid").stdout


# Removal


@pytest.mark.usefixtures("site")
def test_removal_needs_an_id_and_a_yes() -> None:
    succeed("hopper", "hopper-medium-v2")
    path = resolve("hopper").path
    assert "hint: add --yes" in refused("hopper", "--remove")
    assert path.exists()
    size = path.stat().st_size
    printed = document("hopper", "--remove", "--yes")
    assert printed == {"removed": [{"id": HOPPER, "path": str(path), "freed_bytes": size}]}
    assert not path.exists()
    assert resolve(D4RL_HOPPER).path.exists()
    assert f"{HOPPER} was not in the cache" in succeed("hopper", "--remove", "-y").stderr


@pytest.mark.usefixtures("site")
def test_removal_asks_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    succeed("hopper")
    monkeypatch.setattr("gq.cli.output.is_terminal", lambda: True)
    from typer.testing import CliRunner

    from gq.cli import app

    for answer, exit_code in (("n\n", 1), ("y\n", 0)):
        result = CliRunner().invoke(app, ["download", "hopper", "--remove"], input=answer, prog_name="gq")
        assert result.exit_code == exit_code
        assert f"remove {HOPPER} from the cache?" in result.stderr
        assert resolve("hopper").path.exists() == (answer == "n\n")


# In a process of its own


def test_a_failure_is_an_error_a_hint_and_no_traceback(site: Site, tmp_path: Path) -> None:
    result = gq_child("download", "ant", "--json", GQ_HOME=str(tmp_path / "h"), HF_ENDPOINT=site.url)
    assert (result.returncode, result.stdout) == (1, "")
    begin, error, hint = result.stderr.splitlines()
    assert begin.startswith("mujoco/ant/medium-v0: about 882 MB from ")
    assert error.startswith(f"error: cannot download {site.url}/datasets/farama-minari/mujoco/")
    assert hint.startswith("hint: it is not there")

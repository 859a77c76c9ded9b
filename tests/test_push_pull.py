"""Runs and datasets to the Hub and back, through the real client where something is written, against a stand-in."""

import json
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from huggingface_hub import HfApi, constants

from commandline import copy_run, gq
from downloading import isolate, plain_server, write_d4rl, write_minari
from gq.data.reading import read_trajectories
from gq.datasets import hub as hub_module
from gq.datasets.cache import cached, in_cache, record_path, remove
from gq.datasets.hub import list_files
from gq.datasets.loading import download, load_dataset
from gq.datasets.names import parse_reference, resolve
from gq.errors import UsageError
from gq.files import sha256
from gq.hub.pull import pull_run
from gq.runs.card import CARD, CARD_BESIDE, is_own
from gq.runs.checkpoint import OPTIMIZER
from hubserver import serve_hub

STEP = "checkpoints/step-000000004"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return copy_run(trained, tmp_path / "mine" / "hopper")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server to write to, and the token for it; nothing of the user's own login is used."""
    isolate(monkeypatch)
    server = serve_hub(tmp_path / "hub")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def shared(hub: Any, run: Path) -> Path:
    """The folder of a repository, me/hopper, that the run was pushed to."""
    result = gq("push", run, "me/hopper", "--yes")
    assert result.exit_code == 0, result.stderr
    return Path(hub.root) / "me" / "hopper"


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- push -------------------------------------------------------------------------------------------------------------


def test_what_another_person_needs_goes_up_and_no_more(run: Path, hub: Any) -> None:
    gq("eval", run, "--episodes", 1, "--target", "30")
    (run / "videos").mkdir()
    for index, name in enumerate(["old.mp4", "new.mp4"]):
        (run / "videos" / name).write_bytes(bytes([index]) * 10)
    (run / "tracking.json").write_text("{}")
    (run / "notes.txt").write_text("mine")
    result = gq("push", run, "me/hopper", "--yes", "--json")
    assert result.exit_code == 0, result.stderr
    printed, there = json.loads(result.stdout), Path(hub.root) / "me" / "hopper"
    kept = {f"{STEP}/{name}" for name in ("model.safetensors", "state.json", "MANIFEST.json")}
    kept |= {"config.toml", "environment.json", "metrics.jsonl", "times.jsonl", CARD, "videos/new.mp4"}
    kept |= {"checkpoints/best.json", "checkpoints/last.json", f"evals/{next((run / 'evals').iterdir()).name}"}
    assert files_in(there) == kept
    assert (printed["repo"], printed["files"], printed["private"]) == ("me/hopper", len(kept), True)
    assert hub.private == {"me/hopper": True}
    assert len(hub.commits) == 1, "all of it in one commit"
    assert (there / STEP / "model.safetensors").read_bytes() == (run / STEP / "model.safetensors").read_bytes()
    assert gq("push", run, "me/hopper", "--yes", "-q").stdout == f"{hub.url}/me/hopper\n"


def test_folders_of_this_machine_stay_here(run: Path, shared: Path) -> None:
    assert str(run.parents[1]) in (run / "config.toml").read_text() or "data.hdf5" in (run / "config.toml").read_text()
    for path in shared.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            assert "/tmp" not in path.read_text(), path
            assert str(run.parents[1]) not in path.read_text(), path
    assert 'dataset = "data.hdf5"' in (shared / "config.toml").read_text()


def test_a_dry_run_lists_sizes_and_needs_neither_network_nor_token(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("no network"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    printed = json.loads(gq("push", run, "--dry-run", "--json").stdout)
    sizes = {file["path"]: file["size_bytes"] for file in printed["files"]}
    assert sizes[f"{STEP}/model.safetensors"] == (run / STEP / "model.safetensors").stat().st_size
    assert f"{STEP}/{OPTIMIZER}" not in sizes
    assert printed["size_bytes"] == sum(sizes.values())
    with_state = json.loads(gq("push", run, "--dry-run", "--json", "--all").stdout)
    assert f"{STEP}/{OPTIMIZER}" in [file["path"] for file in with_state["files"]]


def test_it_is_sure_before_anything_is_put_up(run: Path, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = gq("push", run, "me/hopper")
    assert (asked.exit_code, asked.stderr.splitlines()[-1]) == (2, "hint: add --yes")
    offline = gq("push", run, "me/hopper", "--yes", "--offline")
    assert "--offline forbids the network" in offline.stderr
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in gq("push", run, "me/hopper", "--yes").stderr
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_TOKEN")
    refused = gq("push", run, "me/hopper", "--yes")
    assert refused.exit_code == 2
    assert refused.stderr.splitlines()[1].startswith("hint: make one with write access")
    assert "hf auth login, or set HF_TOKEN" in refused.stderr
    assert hub.log == []


def test_a_repository_is_public_only_when_asked_for(run: Path, hub: Any) -> None:
    assert gq("push", run, "me/open", "--yes", "--public").exit_code == 0
    assert hub.private == {"me/open": False}
    refused = gq("push", run, "me/open", "--yes")
    assert (refused.exit_code, "me/open is public" in refused.stderr) == (2, True)
    assert len(hub.commits) == 1


@pytest.mark.usefixtures("hub")
def test_without_a_name_it_is_ones_own(run: Path) -> None:
    assert json.loads(gq("push", run, "--yes", "--json").stdout)["repo"] == "me/hopper"


@pytest.mark.parametrize("status", [403, 500])
def test_a_refusal_is_told_in_two_lines(status: int, run: Path, hub: Any) -> None:
    hub.refused = status
    result = gq("push", run, "me/hopper", "--yes")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-2].startswith("error: cannot write to me/hopper: ")
    assert ("HF_TOKEN" in result.stderr.splitlines()[-1]) == (status == 403)


def test_old_checkpoints_make_room_and_an_edited_card_stays_there(run: Path, shared: Path) -> None:
    (shared / CARD).write_text("edited on the web")
    (shared / "notes.txt").write_text("theirs")
    (shared / "checkpoints/step-000000002").mkdir()
    (shared / "checkpoints/step-000000002/model.safetensors").write_bytes(b"old")
    result = gq("push", run, "me/hopper", "--yes", "--json")
    assert json.loads(result.stdout)["removed"] == ["checkpoints/step-000000002/model.safetensors"]
    assert "card of me/hopper was edited there and stays" in result.stderr
    assert (shared / CARD).read_text() == "edited on the web"
    assert (shared / "notes.txt").read_text() == "theirs"


def test_a_damaged_run_does_not_go_up(run: Path, hub: Any) -> None:
    weights = run / STEP / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    result = gq("push", run, "me/hopper", "--yes")
    assert (result.exit_code, "is damaged" in result.stderr) == (1, True)
    assert hub.log == []


# --- pull -------------------------------------------------------------------------------------------------------------


def test_a_run_comes_back_and_is_used_like_any_other(run: Path, shared: Path, own_home: Path) -> None:
    printed = json.loads(gq("pull", "me/hopper", "--json").stdout)
    pulled = own_home / "runs" / "hopper"
    assert (printed["run"], printed["was_there"], printed["left_out"]) == (str(pulled), False, [])
    assert files_in(pulled) == files_in(shared) | {"hub.json"}
    evaluate = ("--episodes", 2, "--target", "30", "--json")
    here, there = (json.loads(gq("eval", which, *evaluate).stdout)["results"] for which in (run, "hopper"))
    assert here == there
    assert "| target 30 |" in (pulled / CARD).read_text()
    assert is_own((pulled / CARD).read_text())
    assert not (pulled / CARD_BESIDE).exists()
    again = gq("pull", "me/hopper")
    assert (again.exit_code, "is here already" in again.stderr) == (0, True)
    assert sorted(path.name for path in (own_home / "runs").iterdir()) == ["hopper"], "nothing else is left"


@pytest.mark.usefixtures("shared")
def test_a_shared_run_cannot_be_trained_on_unless_all_was_shared(
    run: Path, own_home: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gq("pull", "me/hopper")
    refused = gq("train", "dt", "--out", own_home / "runs" / "hopper", "--resume", "--steps", 9)
    assert refused.exit_code == 2
    assert "was shared without its optimiser" in refused.stderr
    assert "there is no unfinished dt run" in gq("train", "dt", "--resume", "--steps", 9).stderr
    assert gq("push", run, "me/whole", "--yes", "--all").exit_code == 0
    monkeypatch.chdir(trained.parent)  # where the dataset lies, which is named without its folder
    gq("pull", "me/whole", "--out", own_home / "whole")
    for folder in (own_home / "whole", run):
        result = gq("train", "dt", "--out", folder, "--resume", "--steps", 6)
        assert result.exit_code == 0, result.stderr
    ends = [sha256(folder / "checkpoints/step-000000006/model.safetensors") for folder in (own_home / "whole", run)]
    assert ends[0] == ends[1], "it went on as the original does"


def test_what_is_no_part_of_a_run_is_left_out(shared: Path, own_home: Path) -> None:
    for name in ("setup.py", "weights.pt", "data.pkl", f"{STEP}/extra.bin", ".gitattributes", "evals/x.py"):
        (shared / name).parent.mkdir(exist_ok=True)
        (shared / name).write_bytes(b"x")
    result = gq("pull", "me/hopper", "--json")
    assert json.loads(result.stdout)["left_out"] == [
        f"{STEP}/extra.bin",
        "data.pkl",
        "evals/x.py",
        "setup.py",
        "weights.pt",
    ]
    assert "left out, as no part of a run: " in result.stderr
    assert files_in(own_home / "runs" / "hopper") == {"hub.json"} | {
        path for path in files_in(shared) if path.endswith((".toml", ".json", ".jsonl", ".md", ".safetensors"))
    }
    modes = [path.stat().st_mode for path in (own_home / "runs" / "hopper").rglob("*") if path.is_file()]
    assert not any(mode & stat.S_IXUSR for mode in modes)


def list_also(monkeypatch: pytest.MonkeyPatch, change: Callable[[list[Any]], list[Any]]) -> None:
    """Change what the Hub lists in a repository."""
    honest = hub_module._listed
    monkeypatch.setattr(hub_module, "_listed", lambda url: change(list(honest(url))))


@pytest.mark.usefixtures("shared")
def test_a_listing_that_repeats_a_file_is_refused(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list_also(monkeypatch, lambda files: files * 3)
    result = gq("pull", "me/hopper")
    assert (result.exit_code, "lists a file more than once" in result.stderr) == (1, True)
    assert not (own_home / "runs").exists()


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("name", ["../evil.json", "evals/../../evil.json", "/etc/evil.json", "C:\\evil.json", "a//b"])
def test_a_name_that_leads_out_of_the_folder_is_refused(
    name: str, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_also(monkeypatch, lambda files: [*files, {"type": "file", "path": name, "size": 1, "oid": "0" * 40}])
    result = gq("pull", "me/hopper")
    assert (result.exit_code, "which is no name of a file in it" in result.stderr) == (1, True)
    assert not (own_home / "runs").exists()


def test_a_listing_of_many_pages_is_read_to_its_end(hub: Any, shared: Path) -> None:
    assert len(files_in(shared)) > 6
    for next_url in (hub.url, ""):  # addresses may be relative
        hub.page_size, hub.next_url = 3, next_url
        snapshot = list_files(parse_reference("me/hopper"), "model")
        assert {file.path for file in snapshot.files} == files_in(shared)
    assert gq("pull", "me/hopper").exit_code == 0


@pytest.mark.usefixtures("shared")
def test_a_listing_that_goes_on_elsewhere_or_for_ever_is_refused(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.page_size = 3
    with plain_server({}) as other:
        hub.next_url = other.url
        refused = gq("pull", "me/hopper")
        assert (refused.exit_code, "continues at another host" in refused.stderr) == (1, True)
        assert other.log == [], "nor does that one see the token"
    hub.next_url = hub.url
    monkeypatch.setattr(hub_module, "MAX_NUM_PAGES", 2)
    refused = gq("pull", "me/hopper")
    assert (refused.exit_code, "has more than 2 pages" in refused.stderr) == (1, True)
    assert len(refused.stderr.splitlines()) == 2


@pytest.mark.usefixtures("shared")
def test_a_listing_is_asked_for_again_where_that_may_help(hub: Any) -> None:
    hub.fault = {**hub.fault, "api": True, "fail_first": 2}
    assert gq("pull", "me/hopper").exit_code == 0
    hub.seen, hub.fault = 0, {**hub.fault, "fail_first": 100}
    refused = gq("pull", "me/hopper", "--out", hub.root + "-out")
    assert (refused.exit_code, "503 Service Unavailable" in refused.stderr) == (1, True)
    hub.fault = {**hub.fault, "fail_first": 0, "html_error": 200}
    refused = gq("pull", "me/hopper", "--out", hub.root + "-out")
    assert (refused.exit_code, "is not answered as the Hub does" in refused.stderr) == (1, True)


@pytest.mark.usefixtures("shared")
def test_a_repository_without_a_commit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HfApi, "repo_info", lambda *_args, **_options: SimpleNamespace(sha="../../evil"))
    refused = gq("pull", "me/hopper")
    assert (refused.exit_code, "is not answered as the Hub does" in refused.stderr) == (1, True)


def test_a_hub_that_is_not_there_is_told_in_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    refused = gq("pull", "me/hopper")
    error, hint = refused.stderr.splitlines()
    assert error.startswith("error: cannot read me/hopper at http://127.0.0.1:9: ")
    assert "HF_ENDPOINT" in hint


@pytest.mark.parametrize("fault", ["weights", "text", "manifest", "pointer", "config"])
def test_what_is_not_as_it_should_be_is_refused(fault: str, hub: Any, shared: Path, own_home: Path) -> None:
    if fault in ("weights", "text"):  # on the way
        only = "*model.safetensors" if fault == "weights" else "*environment.json"
        hub.fault = {**hub.fault, "wrong_hash": True, "only": only}
    elif fault == "manifest":
        document = json.loads((shared / STEP / "MANIFEST.json").read_text())
        document["files"]["../../../secret"] = {"bytes": 1, "sha256": "0"}
        (shared / STEP / "MANIFEST.json").write_text(json.dumps(document))
    elif fault == "pointer":
        (shared / "checkpoints/best.json").write_text('{"checkpoint": "../../other"}')
    else:
        (shared / "config.toml").write_text('algo = "dt"\n[model]\nevil = 1\n')
    result = gq("pull", "me/hopper")
    assert result.exit_code == 1, result.stdout
    assert len(result.stderr.splitlines()) <= 4
    assert not (own_home / "runs" / "hopper").exists()


@pytest.mark.usefixtures("shared")
def test_an_interrupted_pull_goes_on(hub: Any, own_home: Path) -> None:
    def stop(done: int, _total: int | None) -> None:
        if any((own_home / "runs" / ".pulls").rglob("model.safetensors.part")) and done > 8192:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull_run("me/hopper", report=stop)
    assert not (own_home / "runs" / "hopper").exists()
    assert "there is no run hopper" in gq("eval", "hopper").stderr, "half a run is none"
    del hub.log[:]
    assert gq("pull", "me/hopper").exit_code == 0
    fetched = [path for method, path, *_ in hub.log if method == "GET" and "/resolve/" in path]
    assert any(path.endswith("model.safetensors") for path in fetched)
    assert not any(path.endswith("config.toml") for path in fetched), "what was there is only hashed"
    (partial,) = [row for row in hub.log if row[1].endswith("model.safetensors")]
    assert partial[2] is not None, "from where it broke off"


@pytest.mark.usefixtures("shared")
def test_another_run_is_not_overwritten(own_home: Path) -> None:
    mine = own_home / "runs" / "hopper"
    mine.mkdir(parents=True)
    (mine / "config.toml").write_text("mine")
    result = gq("pull", "me/hopper")
    assert (result.exit_code, "--out DIR" in result.stderr) == (2, True)
    assert (mine / "config.toml").read_text() == "mine"
    assert gq("pull", "me/hopper", "--out", own_home / "other").exit_code == 0


@pytest.mark.usefixtures("hub")
def test_what_is_not_there_is_told_with_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    result = gq("pull", "me/nothing")
    assert result.exit_code == 1
    assert "the Hub shows no model me/nothing" in result.stderr
    assert "gq download hf://me/nothing" in result.stderr
    assert gq("pull", "nothing").exit_code == 2
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("no network"))
    assert "--offline forbids the network" in gq("pull", "me/hopper", "--offline").stderr
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in gq("pull", "me/hopper").stderr


# --- datasets ---------------------------------------------------------------------------------------------------------


def test_a_dataset_goes_up_and_comes_back(hub: Any, tmp_path: Path, own_home: Path) -> None:
    file = write_d4rl(tmp_path / "hopper-mine.hdf5")
    result = gq("push", file, "me/data", "--yes", "--json")
    assert result.exit_code == 0, result.stderr
    there = Path(hub.root) / "me" / "data"
    assert files_in(there) == {CARD, "hopper-mine.hdf5"}
    card = (there / CARD).read_text()
    expected = read_trajectories(file, task="Hopper-v5")
    assert f"| return | {expected.returns.mean():.1f} ± {expected.returns.std():.1f} " in card
    assert sha256(file) in card
    printed = json.loads(gq("pull", "datasets/me/data", "--json").stdout)
    assert printed["id"] == "hf://me/data"
    assert printed["path"] == str(own_home / "datasets" / "hub" / "me" / "data.hdf5")
    np.testing.assert_array_equal(load_dataset("hf://me/data").observations, expected.observations)


def test_datasets_by_their_place_on_the_hub(hub: Any, own_home: Path) -> None:
    repo = Path(hub.root) / "them" / "sets"
    write_minari(repo / "hopper" / "medium-v0" / "data")
    result = gq("download", "hf://them/sets@v1", "--json")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert (printed["id"], printed["task"], printed["num_episodes"]) == ("hf://them/sets@v1", "Hopper-v5", 12)
    assert any("/revision/v1" in row[1] for row in hub.log), "the revision that was asked for"
    assert load_dataset("hf://them/sets@v1").num_episodes == 12
    write_d4rl(repo / "other.hdf5")
    refused = gq("download", "hf://them/sets")
    assert (refused.exit_code, "has 2 HDF5 files" in refused.stderr) == (2, True)
    assert "hf://them/sets/" in refused.stderr.splitlines()[-1]
    found = json.loads(gq("download", "hf://them/sets/hopper/medium-v0", "--json").stdout)
    assert found["path"] == str(own_home / "datasets/hub/them/sets/hopper/medium-v0.hdf5")
    assert json.loads(gq("download", "hf://them/sets/other.hdf5", "--json").stdout)["num_episodes"] == 12
    verified = json.loads(gq("download", "--verify", "--json").stdout)
    assert [one["id"] for one in verified["datasets"]] == [
        "hf://them/sets/hopper/medium-v0",
        "hf://them/sets/other.hdf5",
        "hf://them/sets@v1",
    ]
    hub.shutdown()
    assert gq("download", "hf://them/sets@v1", "--offline").exit_code == 0, "it is in the cache"
    assert "forbids the network" in gq("download", "hf://them/nowhere", "--offline").stderr
    assert gq("download", "hf://nonsense").exit_code == 2


def test_datasets_whose_names_differ_by_their_suffix_alone_are_told_apart(hub: Any) -> None:
    repo = Path(hub.root) / "them" / "sets"
    files = {"a.hdf5": "a.hdf5", "a.h5": "a.h5", "a": "a/data.hdf5"}
    for seed, (name, file) in enumerate(files.items(), start=1):
        write_d4rl(repo / file, seed=seed)
        with h5py.File(repo / file, "r+") as root:
            root.attrs["env_id"] = "Hopper-v5"
        done = download(f"hf://them/sets/{name}")
        assert not done.was_cached
        expected = read_trajectories(repo / file)
        np.testing.assert_array_equal(load_dataset(f"hf://them/sets/{name}").rewards, expected.rewards)
    assert load_dataset("hf://them/sets/a.h5").num_episodes == 12, "it has a place of its own"
    loser = resolve("hf://them/sets/a.hdf5")  # shares one with the folder
    assert not cached(loser)
    with pytest.raises(UsageError, match=r"a\.hdf5 is not in the cache"):
        load_dataset(loser.id)
    assert remove(loser) == 0
    record = record_path(resolve("hf://them/sets/a.h5"))
    shutil.copy(record, record.with_name("b.hdf5.json"))  # in the place of another
    assert sorted(entry.id for entry in in_cache()) == ["hf://them/sets/a", "hf://them/sets/a.h5"]
    notes: list[str] = []
    assert not download(loser.id, note=notes.append).was_cached
    assert notes == [], "no file is damaged"
    np.testing.assert_array_equal(load_dataset(loser.id).rewards, read_trajectories(repo / "a.hdf5").rewards)


def test_a_dataset_that_is_not_what_the_hub_lists_is_refused(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_d4rl(Path(hub.root) / "them" / "sets" / "data.hdf5")
    lfs = {"oid": "0" * 64, "size": 1, "pointerSize": 1}
    list_also(monkeypatch, lambda files: [{**one, "size": 1, "oid": "0" * 40, "lfs": lfs} for one in files])
    refused = gq("download", "hf://them/sets")
    assert refused.exit_code == 1
    error, hint = refused.stderr.splitlines()[-2:]
    assert "is not the file that it should be" in error
    assert "the Hub has 000000000000" in error
    assert hint.startswith("hint: run it again")
    assert not cached(resolve("hf://them/sets"))


def test_a_pickle_is_not_shared(hub: Any, tmp_path: Path) -> None:
    (tmp_path / "data.pkl").write_bytes(b"\x80\x04")
    assert gq("push", tmp_path / "data.pkl", "me/data", "--yes").exit_code == 1
    assert hub.log == []

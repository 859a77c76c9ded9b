"""`gq repair` on the command line: exit codes, modes, and what people are told."""

import json
from pathlib import Path

import h5py

import corruptions
from commandline import gq
from corruptions import Stream
from gq.data.reading import read_trajectories
from gq.repair.repair import repair


def test_exit_codes_and_modes(hopper: Stream, tmp_path: Path) -> None:
    good, bad = hopper.write(tmp_path / "hopper.hdf5"), tmp_path / "hopper-bad.hdf5"
    corruptions.shift_terminals(hopper, 1).write(bad)
    assert gq("repair", good).exit_code == 0
    result = gq("repair", bad, "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert [finding["code"] for finding in document["findings"] if finding["severity"] == "problem"] == [
        "shifted-terminals"
    ]
    assert document["output"] is None
    assert gq("repair", bad, "-q").stdout == "shifted-terminals\n"
    result = gq("repair", bad, "--apply", "-o", tmp_path / "out.hdf5", "-q")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'out.hdf5'}\n")
    assert gq("repair", tmp_path / "out.hdf5").exit_code == 0
    for wrong in (["--apply"], ["-o", tmp_path / "x.hdf5"], ["--apply", "-o", tmp_path / "out.hdf5"]):
        result = gq("repair", bad, *wrong)
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 2
    assert gq("repair", tmp_path / "none.hdf5").exit_code == 2
    assert gq("repair", "hopper").exit_code == 2  # not in the cache
    (tmp_path / "page.hdf5").write_text("<html>")
    result = gq("repair", tmp_path / "page.hdf5", "--json")
    assert (result.exit_code, json.loads(result.stdout)["findings"][0]["code"]) == (1, "not-hdf5")
    assert gq("repair", tmp_path / "page.hdf5", "--apply", "-o", tmp_path / "y.hdf5").exit_code == 1


def test_people_are_told_where_and_what_to_do(hopper: Stream, tmp_path: Path) -> None:
    bad = corruptions.shift_terminals(hopper, 1).write(tmp_path / "hopper-bad.hdf5")
    result = gq("repair", bad, "-v")
    assert f"(rows {hopper.ends[0] + 1}, " in result.stdout
    assert "suggested targets: p50" in result.stdout
    assert f"gq repair {bad} --apply -o OUT.hdf5" in result.stderr


def test_a_picture_is_not_replaced_unasked(hopper: Stream, tmp_path: Path) -> None:
    command = ("repair", hopper.write(tmp_path / "hopper.hdf5"), "--png", tmp_path / "a.png")
    (tmp_path / "a.png").write_text("precious")
    refused = gq(*command)
    assert refused.exit_code == 2
    assert "a.png is there already" in refused.stderr
    assert (tmp_path / "a.png").read_text() == "precious"
    assert gq(*command, "--force").exit_code == 0
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_drift_is_measured_on_the_copy(hopper: Stream, tmp_path: Path) -> None:
    bad = corruptions.shift_terminals(hopper, 1).write(tmp_path / "hopper-bad.hdf5")
    result = gq("repair", bad, "--apply", "-o", tmp_path / "out.hdf5", "--replay", "3", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["drift"]["verdict"] == "same physics"


def test_a_dataset_of_the_cache_is_found_by_name(hopper: Stream, tmp_path: Path) -> None:
    from gq.datasets.names import resolve

    entry = resolve("builtin/hopper/medium")
    entry.path.parent.mkdir(parents=True)
    hopper.write(entry.path, env_id="Hopper-v5")
    report = repair("builtin/hopper/medium", output=tmp_path / "copy.hdf5")
    assert report.file == entry.path
    assert read_trajectories(tmp_path / "copy.hdf5").num_episodes == hopper.num_whole
    with h5py.File(tmp_path / "copy.hdf5") as root:
        assert root.attrs["source"] == "builtin/hopper/medium"

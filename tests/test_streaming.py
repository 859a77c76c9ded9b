"""Data that stay in their file: the same windows, the same run, little memory."""

import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gq import presets
from gq.data import rows, windows
from gq.data.reading import read_trajectories
from gq.data.windows import NUM_AHEAD, Batch, Share, StreamingSampler, WindowSampler, is_to_be_streamed
from gq.errors import DataError, Interrupted
from gq.learn import train
from gq.runs.checkpoint import choose_checkpoint, load_checkpoint
from test_checkpoints import assert_same_run, resumed, stop_after
from test_sampler import make_trajectories
from tiny import SETTINGS, write_hopper_file

pytestmark = [pytest.mark.computes, pytest.mark.usefixtures("one_thread", "fast_disk")]


def assert_same(first: Batch, second: Batch) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.integers(1, 12), st.booleans(), st.booleans())
def test_the_batches_are_those_of_the_resident_data(
    lengths: list[int], num_steps: int, backward: bool, delayed: bool
) -> None:
    arguments: dict[str, Any] = {"seed": 4, "backward": backward, "delayed": delayed}
    trajectories = make_trajectories(lengths, list(np.random.default_rng(0).normal(size=sum(lengths))))
    resident = WindowSampler(trajectories, num_steps, **arguments)
    streamed = StreamingSampler(trajectories, num_steps, **arguments)
    for batch_size in (5, 5, 5, 7, 5):  # another size discards what was fetched
        assert_same(streamed.sample(batch_size), resident.sample(batch_size))
        assert torch.equal(streamed.generator.get_state(), resident.generator.get_state())


def test_the_generator_stays_at_the_batch_in_use() -> None:
    trajectories = make_trajectories([30, 20])
    sampler = StreamingSampler(trajectories, 5, seed=1)
    for _ in range(3):
        sampler.sample(4)
    state = sampler.generator.get_state()
    after = [sampler.sample(4) for _ in range(NUM_AHEAD + 2)]
    other = StreamingSampler(trajectories, 5, seed=9)
    other.sample(4)
    other.generator.set_state(state)  # as a resumed run does, after batches were fetched in vain
    for batch in after:
        assert_same(other.sample(4), batch)
    assert not torch.equal(after[0].observations, after[NUM_AHEAD].observations)


def test_processes_share_each_batch() -> None:
    trajectories = make_trajectories([30, 20])
    whole = WindowSampler(trajectories, 5, seed=1).sample(8)
    halves = [StreamingSampler(trajectories, 5, seed=1, share=Share(rank, 2)).sample(8) for rank in range(2)]
    assert_same(Batch(*(torch.cat(parts) for parts in zip(*halves, strict=True))), whole)


def test_an_error_while_fetching_reaches_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = StreamingSampler(make_trajectories([30]), 5)
    monkeypatch.setattr(sampler, "gather", lambda anchors: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sampler.sample(4)


@pytest.mark.parametrize(("free_bytes", "expected"), [(4 * 600, False), (4 * 600 - 1, True)])
def test_what_does_not_fit_the_device_streams(monkeypatch: pytest.MonkeyPatch, free_bytes: int, expected: bool) -> None:
    monkeypatch.setattr(windows, "free_memory_bytes", lambda device: free_bytes)
    trajectories, cpu = make_trajectories([50]), torch.device("cpu")
    assert trajectories.observations.nbytes + trajectories.actions.nbytes == 600
    assert is_to_be_streamed("auto", trajectories, cpu) == expected
    assert is_to_be_streamed("stream", trajectories, cpu)
    assert not is_to_be_streamed("device", trajectories, cpu)


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_is_the_same_and_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_hopper_file(tmp_path / "data.hdf5")
    config = presets.dt("1m").replace({"data.dataset": str(data), "size": "tiny", **SETTINGS})
    streamed = config.replace({"data.placement": "stream"})
    train(config, tmp_path / "resident")
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Interrupted):
            train(streamed, tmp_path / "run")
    resumed(tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "resident")
    found, expected = (load_checkpoint(choose_checkpoint(tmp_path / name, "last")) for name in ("run", "resident"))
    assert torch.equal(found.optimizer["rng/sampler"], expected.optimizer["rng/sampler"])


def test_a_run_says_that_it_streams_and_may_change_it(tmp_path: Path) -> None:
    notes: list[str] = []
    listener = type("Listener", (), {"note": lambda self, text: notes.append(text), "progress": lambda *_: None})()
    data = write_hopper_file(tmp_path / "data.hdf5")
    config = presets.dt("1m").replace({"data.dataset": str(data), **SETTINGS, "eval.every": 0})
    train(config.replace({"data.placement": "stream"}), tmp_path / "run", listener=listener)
    assert any("windows are fetched while the model learns" in note for note in notes)
    resumed(tmp_path / "run", **{"data.placement": "device", "train.steps": 14})


# --- files ------------------------------------------------------------------------------------------------------------


def write_wide_file(path: Path, num_rows: int, *, chunks: bool = False) -> Path:
    """Write so many rows of Humanoid's widths in episodes of 500, piece by piece."""
    generator = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name, width in (("observations", 348), ("actions", 17)):
            column = file.create_dataset(name, (num_rows, width), np.float32, chunks=chunks or None)
            for start in range(0, num_rows, 5000):
                column[start : start + 5000] = generator.random((min(5000, num_rows - start), width), np.float32)
        ends = np.arange(num_rows) % 500 == 499
        file["rewards"], file["terminals"], file["timeouts"] = np.ones(num_rows, np.float32), ends & False, ends
        file.attrs["env_id"] = "Humanoid-v5"
    return path


def test_a_large_file_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_wide_file(tmp_path / "data.hdf5", 40_000)
    assert path.stat().st_size > 56e6
    monkeypatch.setattr(rows, "MAPPED_BYTES", 1 << 20)
    tracemalloc.start()
    trajectories = read_trajectories(path)
    mean, std = trajectories.observation_statistics()
    StreamingSampler(trajectories, 20).sample(64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    monkeypatch.setattr(rows, "MAPPED_BYTES", 1 << 40)
    plain = read_trajectories(path)
    loaded = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6, peak
    assert loaded > 58e6, "loading it would be noticed"
    assert np.array_equal(trajectories.observations, plain.observations)
    for found, expected in zip((mean, std), plain.observation_statistics(), strict=True):
        assert np.array_equal(found, expected)


def test_what_is_not_stored_plainly_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAPPED_BYTES", 1)
    plain, chunked = (
        read_trajectories(write_wide_file(tmp_path / f"{chunks}.hdf5", 1000, chunks=chunks)) for chunks in (False, True)
    )
    assert isinstance(plain.observations, np.memmap)
    assert not isinstance(chunked.observations, np.memmap)
    assert np.array_equal(plain.observations, chunked.observations)
    plain.observations[0] = 0.0
    assert read_trajectories(tmp_path / "False.hdf5").observations[0].any(), "the file is never written"


def test_a_mapped_file_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAPPED_BYTES", 1)
    path = write_wide_file(tmp_path / "data.hdf5", 1000)
    with h5py.File(path, "r+") as file:
        file["observations"][321, 7] = np.nan
    with pytest.raises(DataError, match="observations holds NaN at row 321, column 7"):
        read_trajectories(path)

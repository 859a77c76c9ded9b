"""Settings, files and runs that the tests share."""

import ctypes
import gc
import os
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from gq import threads
from tiny import write_hopper_file

if TYPE_CHECKING:
    from corruptions import Stream
    from downloading import Site
    from resumable import References

# Each of several processes computes in its share of the cores.
if num_processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads.num_cores() // num_processes)))
threads.prepare()

ROOT = Path(__file__).parents[1]
# The same examples everywhere; `--hypothesis-profile default` looks for others.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")

KEPT = ("GQ_FIXTURES", "GQ_DEBUG", "GQ_PRECISION")  # settings for the tests themselves
SHARED = ROOT.parent / "shared"
NOT_KEPT = "not among the recordings in the repository; GQ_FIXTURES names a folder of all"
OWN_RECORDINGS = Path(__file__).resolve().parent / "data" / "recorded"  # see the README there


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let `pytest -rs` list skipped tests by their reasons alone, however many places there are."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        report.longrepr = ("tests", None, report.longrepr[2])  # type: ignore[assignment]
    return report


@pytest.fixture(scope="session", autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let what libraries and children leave in the folder for temporary files go with the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        patch.setattr(tempfile, "tempdir", None)
        yield


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a cache of its own, and no settings of the person who runs it."""
    for name in list(os.environ):
        if name.startswith(("GQ_", "HF_", "MINARI_")) and name not in KEPT:
            monkeypatch.delenv(name)
    monkeypatch.setenv("GQ_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "home"


@pytest.fixture(scope="module", autouse=True)
def freed_memory() -> Iterator[None]:
    """Give memory back after each file: a session of all tests would keep what the largest of them needed."""
    yield
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@pytest.fixture
def fixtures() -> Path:
    """Return the folder of what was recorded from the original programs; without it, of what is kept here of it."""
    folder = Path(os.environ.get("GQ_FIXTURES", SHARED / "fixtures")).resolve()
    return folder if folder.is_dir() else OWN_RECORDINGS


@pytest.fixture
def all_fixtures(fixtures: Path) -> Path:
    """Return the folder of all that was recorded, or skip."""
    if fixtures == OWN_RECORDINGS:
        pytest.skip(NOT_KEPT)
    return fixtures


@pytest.fixture
def shared_data() -> Path:
    """Return the folder of real datasets beside the checkout, or skip."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no datasets in {folder}")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute as child processes do: another number of threads gives other last bits."""
    import torch

    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


@pytest.fixture(scope="module")
def fast_disk() -> Iterator[None]:
    """Wait for no disk: nothing there is about power failures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip where nothing can draw; forget the chosen backend afterwards."""
    from gq.envs import gl
    from gq.errors import GqError

    monkeypatch.setenv("MUJOCO_GL", "")
    try:
        gl.select_backend()
    except GqError as error:
        pytest.skip(str(error))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a file of random Hopper data."""
    return write_hopper_file(tmp_path / "data.hdf5")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a run that no test changes, with its dataset beside it, in a cache of its own."""
    from commandline import train_tiny

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GQ_HOME", str(folder / "home"))
        yield train_tiny(folder)


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[References]":
    """Return the runs that others are compared with, whose scores and episodes' ends depend on no network."""
    from resumable import references_in

    with references_in(tmp_path_factory.mktemp("references")) as references:
        yield references


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Iterator[Site]":
    """Return a stand-in for the servers that data come from, and leave no way to others."""
    from downloading import Site, isolate

    isolate(monkeypatch)
    site = Site(tmp_path / "hub", monkeypatch)
    yield site
    site.close()


@pytest.fixture
def hopper() -> "Stream":
    """Return about 25 short simulated episodes, all falls, and a piece of one."""
    from corruptions import CUT, simulated

    stream = simulated("Hopper-v5", 600)
    assert stream.kinds[-1] == CUT
    return stream


@pytest.fixture
def cheetah() -> "Stream":
    """Return three simulated episodes of 1000 steps."""
    from corruptions import simulated

    return simulated("HalfCheetah-v5", 3_000)

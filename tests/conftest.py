"""Settings and files that the tests share."""

import os
from pathlib import Path

import pytest

from gq import threads

threads.prepare()

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a cache of its own, and no settings of the person who runs it."""
    for name in list(os.environ):
        if name.startswith(("GQ_", "HF_", "MINARI_")) and name not in ("GQ_FIXTURES", "GQ_DEBUG"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GQ_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "home"


@pytest.fixture
def fixtures() -> Path:
    """Return the folder of arrays recorded from the original programs, or skip."""
    folder = Path(os.environ.get("GQ_FIXTURES", SHARED / "fixtures"))
    if not folder.is_dir():
        pytest.skip(f"no recorded arrays in {folder}")
    return folder

"""What is installed is all that gq needs: wheel and sdist are whole, and work far from the repository."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from gq import __version__

ROOT = Path(__file__).parents[1]
PACKAGE = {f"gq/{path.relative_to(ROOT / 'src/gq')}" for path in (ROOT / "src/gq").rglob("*") if path.is_file()}
FILES = {name for name in PACKAGE if "__pycache__" not in name}


def test_no_module_looks_for_files_beside_itself() -> None:
    for path in (ROOT / "src/gq").rglob("*.py"):
        assert "__file__" not in path.read_text(encoding="utf-8"), f"{path}: packaged data come by importlib.resources"


def build(source: Path, target: Path, *kinds: str) -> None:
    """Build a project folder with what is installed, without a network."""
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(target), *(f"-t{kind}" for kind in kinds)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and an sdist of this tree."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder, "wheel", "sdist")
    assert len(list(folder.iterdir())) == 2
    return folder


def names_in(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_the_wheel_is_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("gym_qwen-*.whl")
    inside = names_in(wheel)
    assert {name for name in inside if ".dist-info/" not in name} == FILES
    assert {"gq/py.typed", "gq/results/style.css", "gq/envs/reference_scores.json"} <= inside
    archive, information = zipfile.ZipFile(wheel), f"gym_qwen-{__version__}.dist-info"
    metadata = Parser().parsestr(archive.read(f"{information}/METADATA").decode())
    assert (metadata["Name"], metadata["Version"], metadata["Requires-Python"]) == ("gym-qwen", __version__, ">=3.11")
    assert set(metadata.get_all("Provides-Extra", [])) >= {"dmc", "tensorboard", "wandb", "trackio"}
    assert "gq = gq.cli:main" in archive.read(f"{information}/entry_points.txt").decode()
    assert f"{information}/licenses/LICENSE" in inside


@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("gym_qwen-*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert {"tests", "docs", "scripts", "completions", "Makefile"} <= {path.name for path in source.iterdir()}
    build(source, tmp_path / "dist", "wheel")
    (wheel,) = (tmp_path / "dist").iterdir()
    assert names_in(wheel) == names_in(*built.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_works_far_from_the_repository(built: Path, tmp_path: Path) -> None:
    """Its dependencies come from this environment, gq itself from the wheel alone."""
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "env", with_pip=False)
    paths = sysconfig.get_paths(vars={"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")}, scheme="venv")
    packages, tools = Path(paths["purelib"]), Path(paths["scripts"])
    pip = [sys.executable, "-m", "pip", "--python", str(tools / "python"), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # whose own .pth files are not read
    work = tmp_path / "work"
    work.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GQ_", "PYTHON"))}
    environment = {**kept, "GQ_HOME": str(tmp_path / "home"), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    gq = str(tools / "gq")
    assert run(str(tools / "python"), "-c", "import gq; print(gq.__file__)").startswith(str(packages))
    assert run(gq, "--version") == f"gq {__version__}\n"
    assert json.loads(run(gq, "params", "1m", "--json"))["models"][0]["size"] == "1m"
    assert run(gq, "download", "builtin/hopper/medium", "--transitions", "400", "-q").strip().endswith("medium.hdf5")
    tiny = ["--set", "model.embed_dim=16", "--set", "model.num_heads=2", "--set", "model.num_kv_heads=2"]
    settings = [*tiny, "--set", "model.num_layers=1", "--set", "eval.num_episodes=1", "--target", "50"]
    run(gq, "train", "dt", "--steps", "2", "--out", "run", *settings)
    assert "Scores by gq-v5" in run(gq, "eval", "run", "--episodes", "1", "--target", "50"), "the packaged references"
    run(gq, "report", "run", "-o", "report.html", "--no-rollouts")
    assert "<style>" in (work / "report.html").read_text(encoding="utf-8")
    shutil.rmtree(tmp_path / "env")

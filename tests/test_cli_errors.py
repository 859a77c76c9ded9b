"""What users get wrong ends in at most four lines on stderr, the right exit code and a next step."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from commandline import TINY, child_environment, copy_run, gq, gq_child, gq_command
from gq import presets
from gq.config import RunConfig
from gq.envs import gl
from gq.errors import GqError
from gq.runs.folder import lock_run
from gq.training.memory import memory_advice

FAILED, USAGE = 1, 2


def assert_refused(result: Any, exit_code: int, message: str, hint: str) -> None:
    """Compare with regular expressions; `result` comes from this process or a child."""
    code = result.exit_code if hasattr(result, "exit_code") else result.returncode
    lines = result.stderr.splitlines()
    assert code == exit_code, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert 2 <= len(lines) <= 4, result.stderr
    assert re.search(f"^error: .*{message}", lines[-2]), lines[-2]
    assert re.search(f"^hint: .*{hint}", lines[-1]), lines[-1]


@pytest.fixture
def any_gl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the probe succeed, for commands that fail before they draw."""
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(gl, "probe", lambda backend: "")


# Names and values


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["--task", "hoper"], "there is no task hoper", "did you mean Hopper-v"),
        (["--size", "0.6"], "size 0.6", "0.6b"),
        (["--set", "model.embed_dmi=3"], "there is no setting model.embed_dmi", "did you mean model.embed_dim"),
        (["--set", "learning_rate=3"], "there is no setting learning_rate", "did you mean optim.learning_rate"),
        (["--set", "train.steps"], "--set train.steps has no value", "--set key=value"),
        (["--set", "train.steps=many"], "train.steps = 'many': .*integer", r"--set train.steps=\d+"),
        (["--set", "train.seed=true"], "train.seed = true: a number is wanted", r"--set train.seed=\d+"),
        (["--set", "data.return_scale=false"], "data.return_scale = false: a number", "--set data.return_scale=auto"),
        (["--set", "eval.targets=[1, true]"], r"eval.targets = \[1, true\]: a number", "--set"),
        (["--set", "data.top_fraction=1.5"], "data.top_fraction = 1.5: .*less than or equal to 1", "--set"),
        (["--set", "data.mode=dalayed"], "data.mode = 'dalayed'", "--set data.mode=normal"),
        (["--set", "model.num_heads=3"], "embed_dim 128 is not a multiple of model.num_heads 3", "--set"),
        (["--steps", "0"], "train.steps = 0: .*greater than", r"--set train.steps=\d+"),
        (["--batch-size", "-1"], "train.batch_size = -1", r"--set train.batch_size=\d+"),
        (["--target", "abc"], "--target abc is not a list of numbers", "--target 1800,3600"),
        (["--target", "1,nan"], "--target 1,nan is not a list of numbers", "--target 1800,3600"),
        (["--device", "cuda:99"], "device cuda:99 is not available", "--device cpu"),
        (["--device", "gpu"], "there is no device gpu", "--device auto"),
        (["--config", "nothing.toml"], "cannot read nothing.toml: No such file", "TOML"),
        (["--resume"], "there is no unfinished dt run", "--out DIR --resume"),
    ],
)
def test_a_wrong_training_option_is_refused(
    data: Path, own_home: Path, arguments: list[str], message: str, hint: str
) -> None:
    assert_refused(gq("train", "dt", "--dataset", data, *arguments), USAGE, message, hint)
    assert not own_home.exists(), "a refused run leaves nothing behind"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["train", "dt"], "no dataset given and none downloaded yet", "gq download builtin/hopper/medium"),
        (["train", "dt", "--dataset", "hoper"], "there is no dataset hoper", "did you mean hopper"),
        (["train", "bc", "--dataset", "nothing.hdf5"], "there is no dataset file nothing.hdf5", "check the path"),
        (["train", "dt", "--dataset", "hopper"], "mujoco/hopper/medium-v0 is not in the cache", "gq download mujoco"),
        (["train", "dt", "--dataset", ""], "--dataset is empty", "omit --dataset"),
        (["download"], "no dataset given", "gq download builtin/hopper/medium"),
        (["download", "hoper"], "there is no dataset hoper", "did you mean hopper"),
        (["download", "builtin/hopper/medium", "--transitions", "0"], "cannot simulate 0", "1 or more"),
        (["download", "hopper", "--transitions", "9"], "mujoco/hopper/medium-v0", "builtin"),
        (["eval"], "no run given", "--latest"),
        (["eval", "nothing"], "there is no run nothing", "gq train dt"),
        (["eval", "--latest"], "there is no run with a checkpoint", "gq train dt"),
        (["render", "nothing"], "there is no run nothing", "gq train dt"),
        (["params", "0.6"], "0.6 is neither a size .* nor a run", "did you mean 0.6b"),
        (["params", "--task", "humanid"], "there is no task humanid", "did you mean Humanoid-v"),
        (["params", "--batch-size", "0"], "--batch-size 0", "--batch-size 64"),
    ],
)
def test_a_wrong_name_is_refused(arguments: list[str], message: str, hint: str) -> None:
    assert_refused(gq(*arguments), USAGE, message, hint)


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["eval", "--target", "abc"], "--target abc is not a list of numbers", "--target 1800,3600"),
        (["eval", "--episodes", "0"], "0 episodes", "--episodes 20"),
        (["eval", "--checkpoint", "99"], "has no checkpoint 99", "last, best or one of the steps 4"),
        (["eval", "--device", "cuda:99"], "device cuda:99 is not available", "--device cpu"),
        (["render", "--size", "axb"], "--size axb is not a size", "--size 640x480"),
        (["eval", "--seed", "-1"], "the seed -1 is negative", "0 or more"),
        (["render", "--size", "4x4"], "width and height must be at least 16", "--size 480x480"),
        (["render", "--size", "640x99999"], "at most 4096 pixels", "--size 480x480"),
        (["render", "--seed", "-1"], "the seed at least 0", "--seed 0"),
        (["render", "--output", "film.txt"], "film.txt is not a video's name", ".mp4 or .gif"),
        (["render", "--episodes", "0"], "episodes must be at least 1", "--episodes 1"),
        (["render", "--fps", "0"], "fps above 0", "--fps 60"),
        (["render", "--fps", "nan"], "fps above 0", "--fps 60"),
    ],
)
@pytest.mark.usefixtures("any_gl")
def test_a_wrong_option_for_a_run_is_refused(trained: Path, arguments: list[str], message: str, hint: str) -> None:
    command, *rest = arguments
    assert_refused(gq(command, trained, *rest), USAGE, message, hint)


@pytest.mark.parametrize("arguments", [["trian"], ["train", "dtt"], ["train", "dt", "--stepz", "3"]])
def test_a_misspelt_command_or_option_is_named_with_the_closest(arguments: list[str]) -> None:
    result = gq(*arguments)
    assert result.exit_code == USAGE
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) <= 4
    close = {"trian": "'train'", "dtt": "'dt'", "3": "--steps"}[arguments[-1]]
    assert close in result.stderr.splitlines()[-1]
    assert "--help" in result.stderr or "-h" in result.stderr


def test_device_cuda_without_cuda_leaves_no_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    run = tmp_path / "run"
    result = gq("train", "dt", "--dataset", data, "--out", run, "--device", "cuda", *TINY)
    assert_refused(result, USAGE, "device cuda is not available", "--device cpu")
    assert not run.exists(), "the same command with another device must not be told that the folder is not empty"


def test_a_bad_configuration_file_is_refused(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    for text, message in [
        ("train: steps: 3", "is not TOML"),
        ("[train]\nstpes = 3", "no setting train.stpes"),
        ('[train]\nsteps = "x"', "train.steps = 'x'"),
    ]:
        file.write_text(text)
        assert_refused(gq("train", "dt", "--dataset", data, "--config", file), USAGE, message, "")


def test_an_unknown_camera_is_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "")  # restored afterwards
    try:
        gl.select_backend()
    except GqError as error:
        pytest.skip(str(error))
    assert_refused(gq("render", trained, "--camera", "nose"), USAGE, "no camera nose", "track")


# Data


def damage(path: Path, how: str) -> None:
    """Make a data file unfit to train on."""
    if how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "text":
        path.write_text("<html><body>404 Not Found</body></html>\n")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "NaN":
        with h5py.File(path, "r+") as file:
            file["observations"][7, 2] = float("nan")
    elif how == "shape":
        with h5py.File(path, "r+") as file:
            rewards = file["rewards"][:-5]
            del file["rewards"]
            file["rewards"] = rewards


@pytest.mark.parametrize(
    ("how", "message", "hint"),
    [
        ("truncated", "truncated", ""),
        ("text", "neither an HDF5 file nor a pickle: it is a web page", "fetch it again"),
        ("empty", "it is empty", "fetch it again"),
        ("NaN", "observations holds NaN at .*7, column 2", "gq download --list"),
        ("shape", "differ in length: .*rewards 190", "gq download --list"),
    ],
)
def test_a_file_that_must_not_be_trained_on_is_refused(
    data: Path, own_home: Path, how: str, message: str, hint: str
) -> None:
    damage(data, how)
    result = gq("train", "dt", "--dataset", data)
    assert_refused(result, FAILED, message, hint)
    assert str(data) in result.stderr
    assert not own_home.exists()


def test_data_of_another_task_are_refused(data: Path) -> None:
    result = gq("train", "dt", "--dataset", data, "--task", "walker2d")
    assert_refused(
        result, USAGE, "--task Walker2d-v5 contradicts the data, which record Hopper-v5", "--ignore-env-spec"
    )
    result = gq("train", "dt", "--dataset", data, "--task", "walker2d", "--ignore-env-spec")
    assert_refused(result, FAILED, "11 observation and 3 action columns, Walker2d-v5 has 17 and 6", "--task Hopper-v5")


# Runs


@pytest.mark.parametrize("command", ["eval", "render", "resume"])
@pytest.mark.usefixtures("any_gl")
def test_a_checkpoint_with_a_flipped_byte_is_refused(trained: Path, tmp_path: Path, command: str) -> None:
    run = copy_run(trained, tmp_path / "run")
    weights = run / "checkpoints" / "step-000000004" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    arguments = ["train", "dt", "--resume", "--steps", "6", "--out"] if command == "resume" else [command]
    result = gq(*arguments, run)
    assert_refused(result, FAILED, "model.safetensors is damaged", "only checkpoint of its run: train again")


def test_a_folder_that_is_not_empty_needs_resume(trained: Path) -> None:
    result = gq("train", "dt", "--dataset", trained.parent / "data.hdf5", "--out", trained)
    assert_refused(result, USAGE, "is not empty", f"gq train dt --out {trained} --resume")


def test_resuming_what_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    result = gq("train", "dt", "--out", tmp_path / "other", "--resume")
    assert_refused(result, USAGE, "there is no run in .*other to resume", "choose an empty folder")


def test_resuming_as_another_algorithm_is_refused(trained: Path) -> None:
    result = gq("train", "bc", "--out", trained, "--resume")
    assert_refused(result, USAGE, "is a dt run", "gq train dt --out")


def test_resuming_with_another_learning_rate_is_refused(trained: Path) -> None:
    result = gq("train", "dt", "--out", trained, "--resume", "--set", "optim.learning_rate=0.5")
    assert_refused(result, USAGE, "the run began with optim.learning_rate = 0.001, not 0.5", "train.steps")


def test_a_second_process_cannot_train_the_same_run(trained: Path, tmp_path: Path) -> None:
    run = copy_run(trained, tmp_path / "run")
    with lock_run(run):
        result = gq("train", "dt", "--out", run, "--resume", "--steps", "6")
    assert_refused(result, FAILED, "another process is training", "another --out")
    assert gq("train", "dt", "--out", run, "--resume", "--steps", "6").exit_code == 0


def test_a_prefix_that_fits_two_runs_is_refused(trained: Path, own_home: Path) -> None:
    for name in ("hopper-a", "hopper-b"):
        copy_run(trained, own_home / "runs" / name)
    assert_refused(gq("eval", "hopper"), USAGE, "hopper fits 2 runs", "hopper-a")
    assert_refused(gq("eval", "hopper-c"), USAGE, "there is no run hopper-c", "did you mean hopper-")


# Where it writes, and what it draws with


@pytest.fixture
def readonly_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache below a regular file: nobody can write there, not even an administrator."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GQ_HOME", str(tmp_path / "file" / "home"))
    return tmp_path / "file" / "home"


@pytest.mark.usefixtures("readonly_home")
def test_a_cache_that_cannot_be_written_is_named(data: Path) -> None:
    result = gq("train", "dt", "--dataset", data, *TINY)
    assert_refused(result, FAILED, "cannot write .*file/home/runs", "--out or GQ_HOME")
    result = gq("download", "builtin/hopper/medium", "--transitions", "50")
    assert_refused(result, FAILED, "cannot write .*file/home/datasets", "GQ_HOME")


def test_a_cache_without_permission_is_named(data: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Path.mkdir

    def mkdir(self: Path, *arguments: Any, **options: Any) -> None:
        if self.is_relative_to(own_home):
            raise PermissionError(13, "Permission denied", str(self))
        plain(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    result = gq("train", "dt", "--dataset", data, *TINY)
    assert_refused(result, FAILED, "cannot write .*Permission denied", "--out or GQ_HOME")
    result = gq("download", "builtin/hopper/medium", "--transitions", "50")
    assert_refused(result, FAILED, "Permission denied", "GQ_HOME")


def test_a_run_that_cannot_be_written_is_named(trained: Path, tmp_path: Path) -> None:
    run = copy_run(trained, tmp_path / "run")
    (run / "evals").write_text("")
    result = gq("eval", run, "--episodes", "1", "--target", "10")
    assert_refused(result, FAILED, "cannot write .*run/evals/", "free some space")


def test_a_backend_that_does_not_exist_is_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    assert_refused(gq("render", trained), FAILED, "MUJOCO_GL=nonsense", "unset it, or set MUJOCO_GL to egl")


def test_no_backend_at_all_is_one_message(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(gl, "probe", lambda backend: "its library is not installed")
    assert_refused(gq("render", trained), FAILED, "no OpenGL backend renders here", "egl .*osmesa .*glfw")


def test_a_window_without_a_display_is_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    if sys.platform != "linux":
        pytest.skip("elsewhere there is always a display")
    result = gq("render", trained, "--live")
    assert_refused(result, FAILED, "cannot open a window: no usable display", "without --live a video is written")


# The same from a child process, which nothing has been imported into


def test_a_child_process_fails_in_the_same_way(trained: Path) -> None:
    assert_refused(gq_child("eval", "nothing"), USAGE, "there is no run nothing", "gq train dt")
    result = gq_child("eval", trained, MUJOCO_GL="nonsense")
    assert_refused(result, FAILED, "MuJoCo does not load: .*nonsense", "unset MUJOCO_GL")
    result = gq_child("trian")
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (USAGE, "", 4)
    result = gq_child("eval", "nothing", GQ_DEBUG="1")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_a_reader_that_goes_away_is_no_error_message() -> None:
    shell = " ".join(gq_command("download", "--list", "--json")) + " | head -c 1"
    result = subprocess.run(shell, shell=True, env=child_environment(), capture_output=True, text=True, check=False)
    assert result.stdout == "{"
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr


def test_what_does_not_fit_in_memory_is_named(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("gq.training.offline.build_learner", build)
    result = gq("train", "dt", "--dataset", trained.parent / "data.hdf5", *TINY)
    hint = "--set train.num_micro_batches=2, which computes the batch of .* --set train.checkpoint_activations=true"
    assert_refused(result, FAILED, "windows at a time do not fit in memory", hint)


def test_running_out_of_memory_proposes_half_as_much_at_a_time() -> None:
    def advice(config: RunConfig, num_processes: int = 1) -> tuple[str, str]:
        with pytest.raises(GqError, match="do not fit in memory") as caught, memory_advice(config, num_processes):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return str(caught.value), caught.value.hint

    config = presets.dt("1m").replace({"train.batch_size": 64, "train.num_micro_batches": 3})
    message, hint = advice(config)
    assert "22 windows at a time" in message
    assert "train.num_micro_batches=6, which computes the batch of 64 11 at a time" in hint
    message, hint = advice(config, num_processes=8)
    assert "8 windows at a time" in message
    assert "train.num_micro_batches=16" in hint
    assert "num_micro_batches" not in advice(config.replace({"train.num_micro_batches": 64}))[1]
    least = {"train.num_micro_batches": 64, "train.checkpoint_activations": True}
    assert advice(config.replace(least))[1] == "choose a smaller --size"
    message, hint = advice(presets.tdmpc2("5"))
    assert "a batch of 256" in message
    assert "train.batch_size=128" in hint
    with pytest.raises(ValueError, match="else"), memory_advice(config, 1):
        raise ValueError("something else")

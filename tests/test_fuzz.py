"""Hostile files and texts end in a result or a short refusal: a few hundred of each kind, and by name what was found.

`scripts/fuzz.py` feeds as many as one likes; its table is in docs/results/fuzz.md.
"""

import json
import os
import pickle
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from gq.cli.errors import MAX_LETTERS, tidy
from gq.data import rows
from gq.data.hdf5 import ForeignError, check_size, open_hdf5, plain_attributes
from gq.data.pickle_reader import load_pickle
from gq.data.reading import read_trajectories
from gq.data.steps import StepLog
from gq.errors import DataError, GqError, UsageError
from gq.files import MAX_DEPTH, parse_json, parse_toml, parse_whole_number, sha256
from gq.paths import checkpoint_folders, existing, find_run, read_json
from gq.planning.modes import resolve_mode
from gq.policies.correctors import load_corrector
from gq.policies.loading import Acting, load_run
from gq.results.history import read_history
from gq.runs.checkpoint import choose_checkpoint, load_checkpoint, verify_checkpoint
from gq.runs.evaluations import read_rows
from gq.runs.records import read_run
from gq.speculation.samples import read_plan_data
from tiny import write_hopper_file

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "scripts"))

import fuzz  # noqa: E402
import fuzz_changes  # noqa: E402
import fuzz_runs  # noqa: E402
from fuzz_targets import Target, targets  # noqa: E402

SLOW = {"datasets": 100, "repair": 60, "plan-data": 40, "hub": 40, "checkpoints": 100, "runs": 100}  # others: 200
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not fork well")


# --- the fuzzer -------------------------------------------------------------------------------------------------------


@only_linux
@pytest.mark.parametrize("target", targets(), ids=lambda target: target.name)
def test_whatever_is_read_ends_in_a_result_or_a_short_refusal(target: Target, tmp_path: Path) -> None:
    result = fuzz.fuzz(target, SLOW.get(target.name, 200), seed=20, keep=tmp_path)
    assert fuzz.listed([result]) == []
    assert result.num_inputs == SLOW.get(target.name, 200)
    assert result.num_refused > 0
    assert result.num_read > 0


@only_linux
@pytest.mark.timeout(60)
def test_a_process_with_threads_can_feed_a_model() -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (torch.ones(1_000, 1_000) @ torch.ones(1_000, 1_000)).exp()  # its threads are started, and not forked with it
        (target,) = (target for target in targets() if target.name == "correctors")
        assert fuzz.fuzz(target, 5, seed=20).num_inputs == 5
    finally:
        torch.set_num_threads(threads)


def bad(what: str) -> Callable[[Path], Callable[..., Callable[[], Any]]]:
    """Return the `load` of a target whose input 3 does what no reader may do."""

    def misbehave() -> None:
        if what == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if what == "hang":
            while True:
                pass
        if what == "memory":
            np.ones(1 << 30)
        if what == "hint":
            raise GqError("something is wrong")
        raise KeyError("a")

    def load(_: Path) -> Callable[..., Callable[[], Any]]:
        numbers = iter(range(100))
        next(numbers)  # the input that warms up is none

        def make(_: Any, folder: Path) -> Callable[[], Any]:
            (folder / "input.txt").write_text("it")
            return misbehave if next(numbers) == 5 else lambda: None

        return make

    return load


@only_linux
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("traceback", "KeyError"),
        ("crash", "the process died of SIGSEGV"),
        ("hang", "TooLongError"),
        ("memory", "more memory than allowed"),
        ("hint", "no hint"),
    ],
)
def test_the_fuzzer_notices(what: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "CPU_LIMIT_S", 0.3)
    result = fuzz.fuzz(Target("bad", "", 1, bad(what)), 6, seed=0, keep=tmp_path)
    assert [(finding.number, finding.what) for finding in result.findings] == [(3, said)]
    assert [file.read_text() for file in tmp_path.glob("*/input.txt")] == ["it"]
    assert result.num_read == 5, "it goes on after a crash, and counts nothing twice"


def test_the_same_seed_makes_the_same_inputs() -> None:
    from random import Random

    data = bytes(range(256)) * 8
    one, again, other = (
        [fuzz_changes.change_bytes(random, data) for _ in range(50)] for random in map(Random, (1, 1, 2))
    )
    assert one == again != other


# --- HDF5 -------------------------------------------------------------------------------------------------------------


def hostile(path: Path, change: Callable[[h5py.File], None]) -> Path:
    """Write a sound file and put something into it."""
    with h5py.File(write_hopper_file(path), "r+") as root:
        change(root)
    return path


def read_raw(path: Path) -> rows.Rows:
    """Read rows as repair does."""
    found, problems = rows.read_rows(path)
    if found is None:
        raise DataError(problems[-1].message)
    return found


def moved(root: h5py.File) -> np.ndarray:
    values = root["rewards"][()]
    del root["rewards"]
    return values


def external_link(root: h5py.File) -> None:
    other = Path(root.filename).with_name("other.hdf5")
    with h5py.File(other, "w") as file:
        file["rewards"] = moved(root)
    root["rewards"] = h5py.ExternalLink(str(other), "/rewards")


def soft_link(root: h5py.File) -> None:
    root["kept"] = moved(root)
    root["rewards"] = h5py.SoftLink("/kept")


def external_storage(root: h5py.File) -> None:
    secret = Path(root.filename).with_name("secret.bin")
    values = moved(root)
    values.tofile(secret)
    root.create_dataset("rewards", values.shape, "f4", external=[(str(secret), 0, values.nbytes)])


def virtual_dataset(root: h5py.File) -> None:
    values = moved(root)
    layout = h5py.VirtualLayout(values.shape, "f4")
    layout[:] = h5py.VirtualSource("absent.hdf5", "rewards", values.shape)
    root.create_virtual_dataset("rewards", layout)


@pytest.mark.parametrize("read", [read_trajectories, read_raw])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (external_link, "rewards is a link to elsewhere"),
        (soft_link, "rewards is a link to elsewhere"),
        (external_storage, "the numbers of rewards lie in another file"),
        (virtual_dataset, "the numbers of rewards lie in another file"),
    ],
)
def test_what_lies_in_another_file_is_refused(
    change: Callable[[h5py.File], None], said: str, read: Callable[[Path], Any], tmp_path: Path
) -> None:
    path = hostile(tmp_path / "a.hdf5", change)
    with h5py.File(path) as root:
        assert root["rewards"][:3].shape == (3,), "HDF5 itself reads it"
    with pytest.raises(ForeignError, match=said):
        read(path)


def test_an_episode_behind_a_link_is_refused(tmp_path: Path) -> None:
    def change(root: h5py.File) -> None:
        for name in list(root):
            del root[name]
        root["episode_0"] = h5py.ExternalLink("/dev/zero", "/episode_0")

    path = hostile(tmp_path / "main_data.hdf5", change)
    for read in (read_trajectories, read_raw):
        with pytest.raises(ForeignError, match="episode_0 is a link to elsewhere"):
            read(path)
    with h5py.File(path, "r+") as root:
        root.attrs.update({"format": "gq plan data 1", "teacher_sha256": "a"})
    with pytest.raises(ForeignError, match="episode_0 is a link to elsewhere"):
        read_plan_data(path)


@pytest.mark.parametrize("read", [read_trajectories, read_raw])
def test_a_small_file_cannot_claim_all_memory(read: Callable[[Path], Any], tmp_path: Path) -> None:
    def change(root: h5py.File) -> None:
        for name in list(root):
            shape = (10**10, *root[name].shape[1:])
            del root[name]
            root.create_dataset(name, shape, "f4", chunks=(1000, *shape[1:]), compression="gzip")

    path = hostile(tmp_path / "a.hdf5", change)
    assert path.stat().st_size < 100_000
    with pytest.raises(ForeignError, match=r"bytes and says that it holds 680,000,000,000"):
        read(path)


def test_one_episode_under_many_names_cannot_claim_all_memory(tmp_path: Path) -> None:
    rows = np.zeros((10_000, 11), np.float32)
    episode = {"observations": rows, "actions": rows[:, :3], "rewards": rows[:, 0], "terminals": rows[:, 0] != 0}
    path = tmp_path / "many.pkl"
    path.write_bytes(pickle.dumps([episode] * 1_000, protocol=4))
    for read in (read_trajectories, read_raw):
        with pytest.raises(ForeignError, match="says that it holds"):
            read(path)


def test_data_that_compress_well_are_no_bomb(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10 << 20))
    check_size(path, [(200_000_000,)])
    with pytest.raises(ForeignError):
        check_size(path, [(200_000_000,), (70_000_000,)])


def test_a_type_of_number_that_numpy_lacks_is_refused(tmp_path: Path) -> None:
    def change(root: h5py.File) -> None:
        wide = h5py.h5t.IEEE_F32LE.copy()
        wide.set_size(40)
        wide.set_precision(320)
        wide.set_fields(319, 64, 255, 0, 64)
        size = len(moved(root))
        h5py.h5d.create(root.id, b"rewards", wide, h5py.h5s.create_simple((size,)))

    with pytest.raises(DataError, match="rewards"):
        read_trajectories(hostile(tmp_path / "a.hdf5", change))


def test_a_minari_file_whose_metadata_hold_no_text_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "main_data.hdf5", "w") as root:
        root.create_group("episode_0")
    (tmp_path / "metadata.json").write_text('{"env_spec": [1]}')
    with pytest.raises(DataError, match=r"metadata\.json is damaged"):
        read_trajectories(tmp_path / "main_data.hdf5")


@pytest.mark.parametrize("read", [read_trajectories, read_raw])
def test_a_name_that_is_no_text_is_no_episode(read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = hostile(tmp_path / "a.hdf5", lambda root: root.create_group(b"episode_\xff"))
    assert len(read(path).rewards) == 195
    for name in ("observations", "actions"):
        with h5py.File(path, "r+") as root:
            del root[name]
    with pytest.raises(DataError):
        read(path)


def test_attributes_that_cannot_be_read_cost_no_rows(tmp_path: Path) -> None:
    path = hostile(tmp_path / "hopper.hdf5", lambda root: root.attrs.update({"note": "x" * 100}))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"GCOL", b"XCOL"))  # where texts of any length lie
    assert path.read_bytes() != data
    raw, problems = rows.read_rows(path)
    assert raw is not None
    assert (raw.num_rows, raw.attributes) == (195, {})
    assert "the file's attributes cannot be read" in [problem.message for problem in problems]
    with pytest.raises(DataError, match="is damaged"):
        read_trajectories(path)


@pytest.mark.parametrize("damage", [KeyError("no object type"), TypeError("Unknown string encoding (value 7)")])
def test_whatever_damaged_attributes_raise_is_told_as_damage(damage: Exception, tmp_path: Path) -> None:
    class Attributes:
        def items(self) -> list[Any]:
            raise damage

    with (
        pytest.raises(DataError, match=r"a\.hdf5 is damaged: its attributes cannot be read"),
        open_hdf5(write_hopper_file(tmp_path / "a.hdf5")),
    ):
        plain_attributes(SimpleNamespace(attrs=Attributes()))


# --- pickles ----------------------------------------------------------------------------------------------------------


def test_keys_that_would_take_for_ever_to_hash_are_refused(tmp_path: Path) -> None:
    doubled = b"h\x00\x86q\x00" * 200  # a pair of the last pair and itself, 200 times over
    path = tmp_path / "laughs.pkl"
    path.write_bytes(b"\x80\x02})q\x00" + doubled + b"K\x01s.")
    with pytest.raises(DataError, match="keys that are no names"):
        load_pickle(path)


# --- JSON and TOML ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_json, "[" * 100000 + "]" * 100000),
        (parse_json, '{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1)),
        (parse_toml, f"a = {'[' * 20000}"),
        (parse_toml, f"{'a.' * 5000}b = 1"),
        (parse_json, "1" * 5000),
        (parse_toml, f"a = 0x7{'1' * 5000}"),
        (parse_toml, f"a = [{{ b = {2**63} }}]"),
    ],
)
def test_nesting_and_digits_without_end_are_errors_like_any_other(parse: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ValueError, match=r"nested too deeply|digits|64 bits"):
        parse(text)


def test_nesting_that_files_have_is_read() -> None:
    deep = '{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH
    assert json.dumps(parse_json(deep), separators=(",", ":")) == deep
    assert parse_toml("a.b.c = [[1], [2]]") == {"a": {"b": {"c": [[1], [2]]}}}


def test_json_that_is_no_object_is_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(GqError, match="holds no JSON object") as caught:
        read_json(tmp_path / "a.json")
    assert caught.value.hint


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {run.name: run for run in fuzz_runs.write_runs(folder)}


@pytest.fixture
def run(runs: dict[str, Path], tmp_path: Path) -> Path:
    return fuzz_runs.copy_of(runs["dt"], tmp_path)


def put_header(file: Path, header: bytes, *, length: int | None = None) -> None:
    """Write a safetensors file of a header and 64 bytes."""
    file.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + bytes(64))


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"{}", 2**63),
        (b"{}", 10**9),
        (b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,2000]}}', None),
        (b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,64]}}', None),
        (b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}', None),
        (
            b'{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]},"b":{"dtype":"F32","shape":[12],'
            b'"data_offsets":[16,64]}}',
            None,
        ),
        (b'{"a":{"dtype":"O","shape":[16],"data_offsets":[0,64]}}', None),
        (b'{"a":' + b"[" * 200_000, None),
    ],
    ids=["length", "more than there is", "offsets", "shape", "overflow", "overlap", "dtype", "nesting"],
)
def test_a_malicious_safetensors_header_is_refused(header: bytes, length: int | None, run: Path) -> None:
    checkpoint = choose_checkpoint(run, "best")
    put_header(checkpoint / "model.safetensors", header, length=length)
    fuzz_runs.write_manifest(checkpoint)  # its owner knows the hash
    with pytest.raises(GqError, match=r"model\.safetensors cannot be read") as caught:
        load_run(run, Acting(device="cpu"))
    assert caught.value.hint


@pytest.mark.parametrize("setting", ["mlp_ratio = 1e308", f"embed_dim = {10**400}", f"max_timestep = {2**63}"])
def test_a_size_beyond_all_machines_is_refused(setting: str, run: Path) -> None:
    (run / "config.toml").write_text(re.sub(rf"{setting.split()[0]} = \S+", setting, (run / "config.toml").read_text()))
    with pytest.raises(GqError, match=r"less than|64 bits"):
        load_run(run, Acting(device="cpu"))


@pytest.mark.parametrize("algo", ["{}", "[1]", "{ a = { b = 1 } }", "1"])
def test_an_algorithm_that_has_no_name_is_refused(algo: str, run: Path) -> None:
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace('algo = "dt"', f"algo = {algo}"))
    with pytest.raises(GqError, match="cannot use"):
        load_run(run, Acting(device="cpu"))


def test_a_configuration_that_the_weights_do_not_fit_takes_no_memory(run: Path) -> None:
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("embed_dim = 8", "embed_dim = 10000000"))
    with pytest.raises(GqError, match=r"does not fit .*config\.toml"):
        load_run(run, Acting(device="cpu"))
    (run / "config.toml").write_text(text.replace("num_layers = 1", "num_layers = 1000000000"))
    with pytest.raises(GqError, match="less than or equal to 1024"):
        load_run(run, Acting(device="cpu"))


@pytest.mark.parametrize("name", ["../../../secret", "/etc/passwd", "other.py"])
def test_a_manifest_lists_a_checkpoints_files_and_no_others(name: str, run: Path) -> None:
    checkpoint = choose_checkpoint(run, "best")
    manifest = json.loads((checkpoint / "MANIFEST.json").read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0"}
    (checkpoint / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(GqError, match=r"no readable MANIFEST\.json"):
        verify_checkpoint(checkpoint)
    del manifest["files"][name], manifest["files"]["model.safetensors"]
    (checkpoint / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(GqError, match=r"no readable MANIFEST\.json"):
        load_checkpoint(checkpoint)


def test_a_pointer_leads_nowhere_else(run: Path) -> None:
    (run.parent / "elsewhere").mkdir()
    (run / "checkpoints/best.json").write_text('{"checkpoint": "../../elsewhere"}')
    assert choose_checkpoint(run, "best").name == "step-000000008", "the last one stands for it"


@pytest.mark.parametrize("which", ["²", "x", "9" * 5_000, ""])
def test_what_is_no_step_is_refused(which: str, run: Path) -> None:
    with pytest.raises(UsageError, match="has no checkpoint"):
        choose_checkpoint(run, which)


def test_steps_are_found_by_their_number(run: Path) -> None:
    assert choose_checkpoint(run, "4").name == choose_checkpoint(run, "004").name == "step-000000004"


def test_a_copied_checkpoint_folder_is_no_checkpoint(run: Path) -> None:
    (run / "checkpoints" / "step-000000004 (copy)").mkdir()
    assert [folder.name for folder in checkpoint_folders(run)] == ["step-000000004", "step-000000008"]
    assert read_run(run).num_checkpoints == 2


def test_a_corrector_that_does_not_fit_is_refused_unbuilt(runs: dict[str, Path], tmp_path: Path) -> None:
    run = fuzz_runs.copy_of(runs["tdmpc2"], tmp_path)
    folder, teacher = run / "correctors/two-tower", sha256(run / "checkpoints/step-000000004/model.safetensors")
    document = json.loads((folder / "corrector.json").read_text())
    assert load_corrector(folder, teacher).plan_horizon == 3
    model = document["model"]
    for changes in (
        {"model": model | {"hidden_dim": 10**7}},
        {"model": model | {"num_layers": 10**9}},
        {"model": model | {"hidden_dim": [8]}},
        {"plan_horizon": 0},
        {"execution_horizon": float("inf")},
    ):
        (folder / "corrector.json").write_text(json.dumps(document | changes))
        with pytest.raises(GqError, match=r"cannot (be used|read)"):
            load_corrector(folder, teacher)


def test_numbers_beyond_all_are_refused_in_evaluations(run: Path) -> None:
    file = run / "evals" / "a.json"
    file.write_text(file.read_text().replace('"length": 9,', '"length": 1e999,', 1))
    with pytest.raises(GqError, match="cannot use"):
        read_rows(file, takes_target=True)


def test_records_of_other_types_do_not_hide_a_run(run: Path) -> None:
    state = {"step": "..", "progress": [1]}
    (run / "checkpoints/step-000000008/state.json").write_text(json.dumps(state))
    lines = ['{"eval/target_x/return_mean": 1}', '{"step": [1], "loss": 0.5}', '{"step": 1, "loss": 0.5}', "[1]"]
    (run / "metrics.jsonl").write_text("\n".join(lines[:3]) + "\n")
    (run / "times.jsonl").write_text('{"step": {}, "seconds": 1}\n')
    record = read_run(run)
    assert (record.step, record.best_return, record.last_return) == (0, None, None)
    (series,) = read_history(run, ["loss"]).series
    assert series.values.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    "position",
    [
        {},
        {"ticks": 5},
        {"ticks": -1, "checksums": []},
        {"ticks": 5, "checksums": []},
        {"ticks": "x", "checksums": [1]},
        {"ticks": float("inf"), "checksums": [1]},
        {"ticks": 5, "checksums": [None]},
    ],
)
def test_a_place_in_the_log_that_cannot_be_is_refused(position: dict[str, Any], tmp_path: Path) -> None:
    position = position or {"x": 1}
    with pytest.raises(DataError, match="says no place"):
        StepLog(tmp_path / "steps", num_environments=2, width=7, position=position)


# --- what people type and read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [f"naive{'1' * 5_000}", f"naive3h{'1' * 5_000}", f"{'1' * 5_000}step_naive"])
def test_a_mode_with_thousands_of_digits_is_none(name: str) -> None:
    with pytest.raises(UsageError, match="unknown mode"):
        resolve_mode(name)


@pytest.mark.parametrize(
    ("text", "number"), [(" 12 ", 12), ("0", 0), ("", None), ("-1", None), ("²", None), ("1" * 5_000, None)]
)
def test_a_number_of_a_header_is_read_or_none(text: str, number: int | None) -> None:
    assert parse_whole_number(text) == number


@pytest.mark.parametrize("name", ["x" * 5_000, "a\0b", "~nobody-of-this-name/x", "/proc/self/mem/x"])
def test_names_that_no_path_can_have_are_of_nothing(name: str) -> None:
    assert existing(name) is None
    with pytest.raises(UsageError, match="there is no run"):
        find_run(name)


def test_a_message_cannot_fill_or_rule_the_terminal() -> None:
    assert tidy("a\nb\n\nc") == "a b c"
    assert tidy("\x1b[2J\u202e\ud800x") == r"\x1b[2J\u202e\ud800x"
    assert len(tidy("x" * 10_000)) == MAX_LETTERS
    assert tidy("é ü 中") == "é ü 中"

"""What `fuzz.py` feeds: each target makes small valid files once, then one hostile input after the other."""

import json
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from fuzz_changes import any_toml, change_bytes, change_json, change_text, change_toml

Attempt = Callable[[], Any]  # reads the input; may raise GqError, and nothing else
Make = Callable[[Random, Path], Attempt]  # writes an input into an empty folder


@dataclass(frozen=True)
class Target:
    """Something that reads what others wrote."""

    name: str
    what: str  # for the table
    weight: int  # its share of all inputs
    load: Callable[[Path], Make]  # makes the valid files in a folder, imports what reads them


def load_datasets(seeds: Path) -> Make:
    """HDF5 files and pickles, read to train on them, as `gq train --dataset FILE` does."""
    from gq.data.reading import read_trajectories

    write = hostile_dataset(seeds)

    def make(random: Random, folder: Path) -> Attempt:
        path = write(random, folder)
        return lambda: read_trajectories(path)

    return make


def load_repair(seeds: Path) -> Make:
    """The same files, read as far as they can be, as `gq repair FILE` does; the simulator stays out of it."""
    from gq.repair.repair import repair

    write = hostile_dataset(seeds)

    def make(random: Random, folder: Path) -> Attempt:
        path = write(random, folder)
        return lambda: repair(path, simulate="off")

    return make


def hostile_dataset(seeds: Path) -> Callable[[Random, Path], Path]:
    """Return what writes a damaged or malicious data file and returns its path."""
    from fuzz_hdf5 import change_structure, write_seeds

    files = write_seeds(seeds)
    pickles = pickled_seeds()

    def write(random: Random, folder: Path) -> Path:
        kind = random.randrange(10)
        if kind < 3:
            path = folder / "hopper-medium-v2.pkl"
            path.write_bytes(change_bytes(random, random.choice(pickles)))
            return path
        source = random.choice(files)
        path = folder / source.name
        shutil.copy(source, path)
        if kind < 7:
            change_structure(random, path)
        if kind == 3 or kind >= 7:
            path.write_bytes(change_bytes(random, path.read_bytes()))
        if source.name == "main_data.hdf5" and random.random() < 0.3:
            document = {"dataset_id": "a/b/c-v0", "author": ["x"], "env_spec": '{"id": "Hopper-v5", "x": Infinity}'}
            (folder / "metadata.json").write_bytes(change_json(random, json.dumps(document).encode()))
        return path

    return write


def pickled_seeds() -> list[bytes]:
    """Return pickles of episodes, and programs that read as one."""
    import numpy as np
    from fuzz_hdf5 import columns

    names = ("observations", "actions", "rewards", "terminals")
    episodes = [{name: columns(4)[name][:2] for name in names} for _ in range(3)]
    pickles = [pickle.dumps(episodes, protocol=protocol) for protocol in (2, 3, 4, 5)]
    twice = np.zeros((2, 11), np.float32)
    pickles.append(pickle.dumps([{**episodes[0], "observations": twice, "next_observations": twice}] * 50, protocol=4))
    doubling = b"\x80\x02)q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60)) + b"}h\x3cK\x01s."
    deep = b"\x80\x02)" + b"\x85" * 50_000 + b"."
    attack = b"\x80\x02]q\x00}q\x01X\x0c\x00\x00\x00observationscposix\nsystem\nX\x04\x00\x00\x00true\x85Rsa."
    return [*pickles, *pickles, doubling, deep, attack]


def load_torch(seeds: Path) -> Make:
    """`.pt` files, as `gq download tdmpc2/...` and `gq eval FILE.pt` read them."""
    import torch

    from gq.official.importing import import_tdmpc2
    from gq.official.torch_files import read_torch_file

    base = torch.arange(24.0).reshape(4, 6)
    torch.save(
        {"model": {"a": base, "b": base.t(), "c": base.half()}, "n": [1, None, "x", (1.5, True)]}, seeds / "a.pt"
    )
    torch.save({"a": base}, seeds / "b.pt")
    contents = [file.read_bytes() for file in sorted(seeds.glob("*.pt"))]

    def make(random: Random, folder: Path) -> Attempt:
        data = change_bytes(random, random.choice(contents))
        (folder / "dog-run-1.pt").write_bytes(with_right_checksums(data) if random.random() < 0.7 else data)
        read = random.choice((read_torch_file, read_torch_file, import_tdmpc2))
        return lambda: read(folder / "dog-run-1.pt")  # type: ignore[operator]

    return make


def with_right_checksums(data: bytes) -> bytes:
    """Return a zip archive whose entries have the CRC-32 of their damaged content, so that it is read at all."""
    changed = bytearray(data)
    place = 0
    while (place := data.find(b"PK\x01\x02", place)) >= 0 and place + 46 <= len(data):
        size, name, start = struct.unpack_from("<I4xH12xI", data, place + 20)
        if start + 30 <= len(data):
            name, extra = struct.unpack_from("<HH", data, start + 26)
            begin = start + 30 + name + extra
            struct.pack_into("<I", changed, place + 16, zlib.crc32(data[begin : begin + size]))
            struct.pack_into("<I", changed, start + 14, zlib.crc32(data[begin : begin + size]))
        place += 4
    return bytes(changed)


def load_plan_data(seeds: Path) -> Make:
    """Files of a planner's decisions, as `gq distill --data FILE` reads them."""
    import numpy as np
    from fuzz_hdf5 import change_structure

    from gq.speculation.samples import ARRAYS, PlanEpisode, read_plan_data, write_plan_data

    arrays: dict[str, Any] = {name: np.zeros((3, 2, 2)[: 1 + name.startswith("plan")], np.float32) for name in ARRAYS}
    episodes = [PlanEpisode(**arrays, number=number, round=0, driver="planner", seed=0) for number in range(2)]
    write_plan_data(seeds / "plans.hdf5", episodes, {"teacher_sha256": "a" * 64})

    def make(random: Random, folder: Path) -> Attempt:
        path = folder / "plans.hdf5"
        shutil.copy(seeds / "plans.hdf5", path)
        if random.random() < 0.5:
            change_structure(random, path)
        else:
            path.write_bytes(change_bytes(random, path.read_bytes()))
        return lambda: read_plan_data(path)

    return make


def load_config(_: Path) -> Make:
    """TOML files given with --config, and config.toml of runs."""
    from gq.config import CONFIGS, to_toml, validate
    from gq.runs.folder import read_config
    from gq.settings import flatten, read_config_file

    texts = {algo: to_toml(kind()).encode() for algo, kind in CONFIGS.items()}

    def make(random: Random, folder: Path) -> Attempt:
        algo = random.choice(list(texts))
        path = folder / "config.toml"
        path.write_bytes(change_toml(random, texts[algo]))
        if random.random() < 0.4:
            return lambda: read_config(folder)

        def attempt() -> Any:
            return CONFIGS[algo]().replace(flatten(read_config_file(path)), origin=f"{path}: ")

        return random.choice((attempt, lambda: validate(CONFIGS[algo], read_config_file(path))))

    return make


def load_settings(_: Path) -> Make:
    """What stands behind --set."""
    from gq.config import CONFIGS
    from gq.settings import flatten, parse_settings, toml_value

    keys = [
        (kind, key, toml_value(value)) for kind in CONFIGS.values() for key, value in flatten(kind().to_dict()).items()
    ]

    def make(random: Random, folder: Path) -> Attempt:
        chosen = [random.choice(keys) for _ in range(random.choice((1, 1, 1, 3)))]
        settings = []
        for _, key, value in chosen:
            kind = random.randrange(4)
            text = f"{key}={any_toml(random) if kind < 3 else value}"
            settings.append(change_text(random, text) if kind in (0, 3) else text)
        remember(folder, settings)
        return lambda: chosen[0][0]().replace(parse_settings(settings))

    return make


def load_modes(_: Path) -> Make:
    """What stands behind --mode."""
    from gq.planning.modes import MODES, resolve_mode

    names = [*MODES, "hybrid6+response@0.5", "spec6h3+raw@.5", "baselineh5", "beam4+raw"]

    def make(random: Random, folder: Path) -> Attempt:
        text = change_text(random, random.choice(names))
        remember(folder, text)
        changes = {
            "threshold": random.choice((None, None, 0.0, -1.0, float("nan"), 1e308)),
            "plan_horizon": random.choice((None, 0, -1, 10**30)),
        }
        return lambda: resolve_mode(text, **(changes if random.random() < 0.2 else {}))

    return make


def load_names(seeds: Path) -> Make:
    """Names of datasets, repositories, runs and tasks."""
    from gq.datasets.catalog import ENTRIES
    from gq.datasets.loading import canonical_name
    from gq.datasets.names import all_levels, hub_entry, parse_reference, resolve
    from gq.envs.tasks import resolve_task
    from gq.paths import find_run
    from gq.runs.changes import rename

    names = [
        *ENTRIES,
        "hopper",
        "humanoid_medium-v2",
        "hf://org/name@main/a/b.hdf5",
        "org/name@v1",
        "hopper-v5",
        "last",
    ]
    readers: list[Callable[[str], Any]] = [resolve, all_levels, canonical_name, resolve_task, find_run]
    readers += [
        parse_reference,
        hub_entry,
        lambda text: rename(seeds / "absent", text),
        lambda text: resolve("hopper", level=text),
    ]

    def make(random: Random, folder: Path) -> Attempt:
        text, read = change_text(random, random.choice(names)), random.choice(readers)
        remember(folder, text)
        return lambda: read(text)

    return make


def load_logs(seeds: Path) -> Make:
    """The logs of steps and of episodes that a resumed run begins with."""
    import numpy as np

    from gq.data.replay import EpisodeLog, LoggedEpisode
    from gq.data.steps import StepLog

    with EpisodeLog(seeds / "episodes.bin", observation_dim=3, action_dim=2) as log:
        for number in range(3):
            arrays = [np.ones((4, 3), np.float32), np.ones((4, 2), np.float32), np.ones(4, np.float32)]
            log.append(number, LoggedEpisode(*arrays, terminated=True))  # type: ignore[arg-type]
    steps = StepLog(seeds / "steps", num_environments=2, width=7)
    for _ in range(5):
        steps.append(np.ones((2, 7), np.float32))
    position = json.dumps(steps.sync()).encode()

    def make(random: Random, folder: Path) -> Attempt:
        if random.random() < 0.5:
            path = folder / "episodes.bin"
            path.write_bytes(change_bytes(random, (seeds / path.name).read_bytes()))
            return lambda: read_episodes(path)
        shutil.copytree(seeds / "steps", folder / "steps")
        if random.random() < 0.5:
            file = folder / "steps" / "steps-000000.bin"
            file.write_bytes(change_bytes(random, file.read_bytes()))
        (folder / "state.json").write_bytes(change_json(random, position) if random.random() < 0.5 else position)
        return lambda: StepLog(folder / "steps", num_environments=2, width=7, position=at(folder)).read(0)

    def read_episodes(path: Path) -> None:
        with EpisodeLog(path, observation_dim=3, action_dim=2) as log:
            for number in log.lengths:
                log.read(number)

    def at(folder: Path) -> dict[str, Any]:
        from gq.paths import read_json

        return read_json(folder / "state.json")

    return make


def remember(folder: Path, value: Any) -> None:
    """Write an input that is no file, so that it can be kept."""
    (folder / "input.txt").write_text(ascii(value))


def targets() -> list[Target]:
    """Return all targets."""
    from fuzz_runs import load_checkpoints, load_correctors, load_evaluations, load_hub, load_runs

    return [
        Target("datasets", "D4RL, canonical and Minari HDF5, pickled episodes", 8, load_datasets),
        Target("repair", "the same files through `gq repair`", 4, load_repair),
        Target("torch", "`.pt` files of PyTorch", 14, load_torch),
        Target("plan-data", "a planner's decisions, HDF5", 1, load_plan_data),
        Target("config", "TOML of every algorithm", 16, load_config),
        Target("settings", "`--set` of every algorithm", 16, load_settings),
        Target("modes", "`--mode`", 16, load_modes),
        Target("names", "datasets, repositories, runs, tasks", 12, load_names),
        Target("checkpoints", "manifest, state, safetensors, config of a run, loaded to act", 4, load_checkpoints),
        Target("correctors", "corrector.json and its weights", 2, load_correctors),
        Target("evaluations", "evals/*.json", 2, load_evaluations),
        Target("runs", "metrics.jsonl, pointers and the rest of a run, for lists, cards and curves", 2, load_runs),
        Target("hub", "listings and files of a repository, pulled", 1, load_hub),
        Target("logs", "step and episode logs", 2, load_logs),
    ]

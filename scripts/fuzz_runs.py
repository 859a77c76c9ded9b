"""The targets of `fuzz.py` that read runs: checkpoints, correctors, evaluations, logs, and runs from the Hub."""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from fuzz_changes import any_value, change_bytes, change_json, change_toml, change_tree

TASKS = {"dt": "Hopper-v5", "bc": "Hopper-v5", "odt": "Hopper-v5", "tdmpc2": "Hopper-v5"}
SMALL_TRANSFORMER = {
    "embed_dim": 8,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 2,
    "context_length": 5,
    "max_timestep": 10,
}
SMALL = {
    "dt": SMALL_TRANSFORMER,
    "bc": {"embed_dim": 8, "num_layers": 1},
    "odt": SMALL_TRANSFORMER,
    "tdmpc2": {"encoder_dim": 8, "mlp_dim": 8, "latent_dim": 8, "num_q": 2, "num_bins": 5},
}
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "X", "", None, 3)


def write_runs(folder: Path) -> list[Path]:
    """Write a small run of each algorithm, with two checkpoints, evaluations, metrics and a corrector."""
    import torch

    from gq.config import CONFIGS, to_toml
    from gq.policies.algorithms import build_model
    from gq.runs.checkpoint import save_checkpoint

    runs = []
    for algo, task in TASKS.items():
        changes = {f"model.{key}": value for key, value in SMALL[algo].items()}
        config = CONFIGS[algo]().replace({"task": task, **changes})
        run = folder / algo
        run.mkdir(parents=True)
        (run / "config.toml").write_text(to_toml(config))
        model = build_model(config)
        for step in (4, 8):
            state = {"progress": {"best_return": 1.5, "best_step": 4, "decisions": 8}, "versions": {"mujoco": "3.2.0"}}
            tensors = {"moment": torch.ones(3)}
            save_checkpoint(
                run, step, model=model.state_dict(), optimizer=tensors, state=state, is_best=step == 4, keep=2
            )
        write_records(run, algo)
        if algo == "tdmpc2":
            write_corrector(run)
        runs.append(run)
    return runs


def write_records(run: Path, algo: str) -> None:
    """Write what a run logs and what `gq eval` leaves behind."""
    way = {"mode": "plan"} if algo == "tdmpc2" else {"target_return": 3600.0}
    episodes = [{"seed": seed, "episode_return": 1.5, "length": 9, "terminated": True, **way} for seed in range(3)]
    summary = {"target_return": None, "mode": None, "normalized_mean": None, "reference": None, "num_episodes": 3}
    summary |= {f"return_{name}": 1.5 for name in ("mean", "std", "min", "max", "iqm")} | {"length_mean": 9.0, **way}
    document = {
        "checkpoint": "step-000000004",
        "seed": 0,
        "stochastic": False,
        "versions": {"mujoco": "3.2.0"},
        "results": [summary | {"return_ci95": [1.0, 2.0]}],
        "episodes": episodes,
    }
    (run / "evals").mkdir()
    (run / "evals" / "a.json").write_text(json.dumps(document))
    records = [
        {"step": step, "loss": 0.5, "eval/target_3600/return_mean": 1.0, "eval/return_mean": 2.0} for step in (1, 2, 3)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (run / "times.jsonl").write_text("".join(json.dumps({"step": step, "seconds": 0.5}) + "\n" for step in (1, 2)))
    environment = {
        "versions": {"gq": "1"},
        "dataset": {"origin": "x"},
        "dataset_sha256": "0",
        "device": "cpu",
        "command": "gq",
    }
    (run / "environment.json").write_text(json.dumps(environment))


def write_corrector(run: Path) -> None:
    """Write a corrector of the run's last checkpoint."""
    from gq.files import sha256
    from gq.models.corrector import Corrector, CorrectorConfig
    from gq.policies.correctors import save_corrector

    config = CorrectorConfig(latent_dim=8, action_dim=3, hidden_dim=8, num_layers=1)
    teacher = sha256(run / "checkpoints/step-000000004/model.safetensors")
    facts = {"teacher_sha256": teacher, "checkpoint": "step-000000004", "execution_horizon": 3, "plan_horizon": 3}
    save_corrector(run / "correctors" / "two-tower", Corrector(config), facts)


def copy_of(run: Path, folder: Path) -> Path:
    """Copy a run; its files are small."""
    return Path(shutil.copytree(run, folder / run.name))


def change_safetensors(random: Random, data: bytes) -> bytes:
    """Return a safetensors file with another header: its length, names, types, shapes, offsets; or damaged anyhow."""
    if random.random() < 0.3:
        return change_bytes(random, data)
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    entry = header[random.choice(names)]
    kind = random.randrange(8)
    if kind == 0:
        entry["dtype"] = random.choice(DTYPES)
    elif kind == 1:
        entry["shape"] = random.choice(
            ([10**9, 10**9], [2**63], [-1, 4], [], [0], [1] * 100, [4.5], "3", None, [2**64])
        )
    elif kind == 2:
        entry["data_offsets"] = random.choice(
            ([0, 2**63], [8, 0], [0, 0], [-4, 4], [0, len(body)], [2**64, 2**64], [0], None)
        )
    elif kind == 3:
        entry["data_offsets"] = header[random.choice(names)]["data_offsets"]
    elif kind == 4:
        del header[random.choice(names)]
    elif kind == 5:
        header[random.choice(("__metadata__", "x", "../y", "a" * 5_000))] = random.choice(
            ({"a": 1}, dict(entry), any_value(random))
        )
    elif kind == 6:
        header = change_tree(random, header)
    else:
        body = random.choice((b"", body[:-1], body + bytes(64), body * 2))
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    stated = (
        len(text)
        if random.random() < 0.8
        else random.choice((0, 1, 2**63, 2**64 - 1, 10**8, len(text) + 10**6, len(data)))
    )
    return struct.pack("<Q", stated) + text + body


def write_manifest(folder: Path) -> None:
    """Let a checkpoint's manifest fit its files, as whoever made them on purpose would."""
    files = [file for file in folder.iterdir() if file.name != "MANIFEST.json"]
    entries = {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in files
    }
    (folder / "MANIFEST.json").write_text(json.dumps({"format": 1, "files": entries}))


def change_file(random: Random, file: Path) -> None:
    """Damage a file of a run in a way that suits it."""
    data = file.read_bytes()
    if file.suffix == ".json":
        data = change_json(random, data)
    elif file.suffix == ".jsonl":
        lines = data.splitlines()
        place = random.randrange(len(lines))
        lines[place] = change_json(random, lines[place])
        data = b"\n".join(lines) + random.choice((b"", b"\n"))
    elif file.suffix == ".toml":
        data = change_toml(random, data)
    elif file.suffix == ".safetensors":
        data = change_safetensors(random, data)
    else:
        data = change_bytes(random, data)
    file.write_bytes(data)


def load_checkpoints(seeds: Path) -> Callable[[Random, Path], Callable[[], Any]]:
    """A run whose checkpoint is loaded to act: `gq eval`, `gq render`, `gq collect`."""
    from gq.policies.loading import Acting, load_run

    runs = write_runs(seeds)

    def make(random: Random, folder: Path) -> Callable[[], Any]:
        run = copy_of(random.choice(runs), folder)
        checkpoint = run / "checkpoints" / "step-000000004"
        files = ["config.toml", *[f"checkpoints/{name}" for name in ("best.json", "last.json")]]
        files += [f"checkpoints/step-000000004/{name}" for name in ("MANIFEST.json", "state.json")]
        files += ["checkpoints/step-000000004/model.safetensors"] * 4 + [
            "checkpoints/step-000000004/optimizer.safetensors"
        ]
        chosen = random.choice(files)
        change_file(random, run / chosen)
        if not chosen.endswith("MANIFEST.json") and random.random() < 0.85:
            write_manifest(checkpoint)
        which = random.choice(("best", "best", "last", "4", "x", "²"))
        return lambda: load_run(run, Acting(checkpoint=which, device="cpu"))

    return make


def load_correctors(seeds: Path) -> Callable[[Random, Path], Callable[[], Any]]:
    """What `gq eval --mode spec3` loads beside the checkpoint."""
    from gq.files import sha256
    from gq.policies.correctors import find_corrector, load_corrector

    run = write_runs(seeds)[-1]
    source, teacher = run / "correctors" / "two-tower", sha256(run / "checkpoints/step-000000004/model.safetensors")

    def make(random: Random, folder: Path) -> Callable[[], Any]:
        copied = folder / "correctors" / "two-tower"
        shutil.copytree(source, copied)
        chosen = random.choice(("model.safetensors", "corrector.json", "corrector.json"))
        change_file(random, copied / chosen)
        if chosen == "model.safetensors" and random.random() < 0.85:
            document = json.loads((copied / "corrector.json").read_text())
            (copied / "corrector.json").write_text(json.dumps(document | {"sha256": sha256(copied / chosen)}))
        return lambda: load_corrector(find_corrector(folder, None), teacher)

    return make


def load_evaluations(seeds: Path) -> Callable[[Random, Path], Callable[[], Any]]:
    """What `gq compare`, `gq report` and `gq plot` read of earlier evaluations."""
    from gq.runs.card import card_text
    from gq.runs.evaluations import read_evaluations, read_rows

    runs = write_runs(seeds)

    def make(random: Random, folder: Path) -> Callable[[], Any]:
        run = copy_of(random.choice(runs), folder)
        file = run / "evals" / "a.json"
        change_file(random, file)
        readers: list[Callable[[], Any]] = [
            *(lambda: read_rows(file, takes_target=True), lambda: read_rows(file, takes_target=False)),
            *(lambda: card_text(run), lambda: read_evaluations(run)),
        ]
        return random.choice(readers)

    return make


def load_runs(seeds: Path) -> Callable[[Random, Path], Callable[[], Any]]:
    """What `gq runs`, `gq plot` and a run's card read."""
    from gq.results.history import read_history
    from gq.runs.card import card_text
    from gq.runs.checkpoint import choose_checkpoint
    from gq.runs.details import describe
    from gq.runs.evaluations import read_evaluations
    from gq.runs.records import read_run

    runs = write_runs(seeds)
    readers: list[Callable[[Path], Any]] = [read_run, describe, read_history, card_text]
    readers += [lambda run: choose_checkpoint(run, "best"), read_evaluations]
    readers += [lambda run: read_history(run, ["loss"])]

    def make(random: Random, folder: Path) -> Callable[[], Any]:
        run = copy_of(random.choice(runs), folder)
        names = ("config.toml", "metrics.jsonl", "times.jsonl", "environment.json", "evals/a.json")
        names += ("checkpoints/best.json", "checkpoints/last.json", "checkpoints/step-000000008/state.json")
        change_file(random, run / random.choice(names))
        read = random.choice(readers)
        return lambda: read(run)

    return make


def load_hub(seeds: Path) -> Callable[[Random, Path], Callable[[], Any]]:
    """A repository whose server and owner are both hostile: `gq pull` and `gq download hf://...`."""
    from huggingface_hub import hf_api

    from gq.datasets import hub
    from gq.datasets.names import hub_entry
    from gq.hub import pull as pulling

    runs = write_runs(seeds)
    commit = "0" * 40

    def make(random: Random, folder: Path) -> Callable[[], Any]:
        run = copy_of(random.choice(runs), folder / "server")
        if random.random() < 0.6:
            change_file(random, random.choice(sorted(file for file in run.rglob("*") if file.is_file())))
            for checkpoint in sorted((run / "checkpoints").glob("step-*")) if random.random() < 0.7 else ():
                write_manifest(checkpoint)
        listed = [entry_of(run, file) for file in sorted(run.rglob("*")) if file.is_file()]
        answers = {"tree": json.dumps(listed).encode(), "revision": json.dumps({"sha": commit}).encode()}
        if random.random() < 0.6:
            which = random.choice(("tree", "tree", "tree", "revision"))
            answers[which] = change_json(random, answers[which])

        def repo_info(*_: Any, **__: Any) -> Any:
            return SimpleNamespace(sha=json.loads(answers["revision"])["sha"])

        def listed_pages(_: str) -> Any:
            yield from json.loads(answers["tree"])

        def fetch(remote: Any, target: Path, **_: Any) -> None:
            file = run / remote.url.partition(f"/resolve/{commit}/")[2]
            target.write_bytes(file.read_bytes() if file.is_file() else b"")

        def attempt() -> Any:
            hf_api.HfApi.repo_info = repo_info  # type: ignore[method-assign]
            hub._listed = listed_pages
            pulling.fetch = fetch  # type: ignore[assignment]
            if random.random() < 0.2:
                return hub.dataset_files(hub_entry("hf://me/hopper"))
            found = pulling.pull_run("me/hopper", out=folder / "here" / "hopper")
            outside = [
                path for path in folder.rglob("*") if path.parent == folder and path.name not in ("server", "here")
            ]
            assert not outside, f"it wrote {outside}"
            return found

        return attempt

    return make


def entry_of(run: Path, file: Path) -> dict[str, Any]:
    """Return what the Hub lists of a file."""
    data = file.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return {"type": "file", "path": file.relative_to(run).as_posix(), "size": len(data), "oid": blob}

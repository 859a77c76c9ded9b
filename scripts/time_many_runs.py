"""CPU seconds of `gq runs`, `--latest` and `--resume` in a folder with ten and with many runs.

    .venv/bin/python scripts/time_many_runs.py [NUMBER]      default: 10,000

The runs are copies of one that is given the files of a finished training without weights.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from gq import presets
from gq.config import to_toml

COMMANDS = {
    "gq runs": ["runs"],
    "gq runs show --latest": ["runs", "show", "--latest"],
    "gq finetune --latest": ["finetune", "--latest"],  # of odt or finetune, of which there is none
    "gq train dt --resume": ["train", "dt", "--resume"],  # all are finished
}


def write_run(folder: Path) -> None:
    """Write a finished run of a hundred steps."""
    config = presets.dt("1m").replace(
        {"task": "Hopper-v5", "data.dataset": "builtin/hopper/medium", "train.steps": 100}
    )
    checkpoint = folder / "checkpoints" / "step-000000100"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text('{"step": 100, "progress": {"best_return": 5.0}}')
    (folder / "checkpoints" / "last.json").write_text('{"checkpoint": "step-000000100"}')
    (folder / "config.toml").write_text(to_toml(config))
    (folder / "README.md").write_text("a run\n")
    (folder / "metrics.jsonl").write_text('{"step": 100, "eval/target_1000/return_mean": 5.0}\n')
    (folder / "environment.json").write_text("{}")


def seconds(arguments: list[str], home: Path) -> float:
    """Return the CPU seconds of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "GQ_HOME": str(home)}
    subprocess.run([sys.executable, "-m", "gq", *arguments], env=environment, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        homes = {count: Path(folder) / str(count) for count in (10, number)}
        for count, home in homes.items():
            for index in range(count):
                write_run(home / "runs" / f"hopper-v5-dt-1m-{index:06d}")
        print(f"| command | 10 runs | {number:,} runs | more |\n| --- | ---: | ---: | ---: |")
        for name, arguments in COMMANDS.items():
            few, many = (seconds(arguments, home) for home in homes.values())
            print(f"| {name} | {few:.2f} s | {many:.2f} s | {many - few:.2f} s |", flush=True)


if __name__ == "__main__":
    main()

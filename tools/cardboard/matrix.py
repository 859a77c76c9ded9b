"""Run gq's command line on the GPU of cardboard, case by case; print a table, and fail where a case does.

    python tools/cardboard/matrix.py VENV [--cases NAME...] [--update]

A case must exit with 0, break no capture, and capture what benchmarks/launches.json says: the kernels of each graph, an
update's or a plan's, may be no more than there. `--update` writes that file. Nothing is compiled: that takes minutes,
and is for `tools/cardboard/gpu run` by hand.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
BUDGET = HERE.parents[1] / "benchmarks" / "launches.json"
FAULTS = ("ILLEGAL", "UNCAPTURED", "PAGEABLE")
# Eager exp2 is compiled at run time, which crashes the cardboard; kernels do nothing, so drawn rows are any numbers.
SHIM = """
import sys, torch, numpy as np
from gq.data import windows
torch.Tensor.exp2 = lambda self: (self * 0.6931471805599453).exp()
gather = windows.StreamingSampler.gather
windows.StreamingSampler.gather = lambda self, rows: gather(self, np.clip(rows, 0, len(self.arrays[0]) - 1))
from gq.cli import main
sys.argv[0] = "gq"
main()
"""
MODEL = "--set model.embed_dim=32 --set model.num_layers=2 --set eval.num_episodes=2 --set train.log_every=5"
WORLD = (
    "--size 1 --set model.encoder_dim=16 --set model.mlp_dim=32 --set model.latent_dim=16 --set planner.iterations=2 "
    "--set planner.num_samples=16 --set planner.num_policy_samples=4 --set planner.num_elites=4 "
    "--set train.seed_decisions=60 --set train.updates_per_decision=0.1 --set eval.every=0"
)
DT = f"train dt --dataset builtin/hopper/medium --steps 20 --set eval.every=0 {MODEL} --device cuda"
# By name: a command, in the order in which they need each other's runs.
CASES = {
    "data": "download builtin/hopper/medium --transitions 3000",
    "dt": f"{DT} --set eval.every=10 --out dt",
    "dt, dropout": f"{DT} --set model.dropout=0.1 --out dropout",
    "dt, gpt2": f"{DT} --set model.backbone=gpt2 --set model.num_kv_heads=4 --out gpt2",
    "dt, lamb": f"{DT} --set optim.optimizer=lamb --out lamb",
    "dt, micro-batches": f"{DT} --set train.num_micro_batches=3 --out micro",
    "dt, activations computed again": f"{DT} --set train.checkpoint_activations=true --out again",
    "dt, streamed": f"{DT} --set data.placement=stream --out streamed",
    "dt, off": f"{DT} --set train.compile=off --out off",
    "dt, resumed": "train dt --out dt --resume --steps 40",
    "dt, resumed on a CPU": "train dt --out lamb --resume --steps 30 --device cpu",
    "bc": "train bc --dataset builtin/hopper/medium --steps 20 --set eval.num_episodes=2 --device cuda --out bc",
    "odt": "train odt --dataset builtin/hopper/medium --steps 20 --set eval.num_episodes=2 --device cuda --out odt",
    "finetune": "finetune odt --checkpoint last --iterations 1 --rollouts 2 --updates 8 --set online.final_episodes=1 "
    "--device cuda --out finetuned",
    "tdmpc2": f"train tdmpc2 --task Pendulum-v1 {WORLD} --decisions 300 --device cuda --out world",
    "tdmpc2, three environments": f"train tdmpc2 --task Pendulum-v1 {WORLD} --environments 3 --decisions 300 "
    "--device cuda --out worlds",
    "tdmpc2, plans off": f"train tdmpc2 --task Pendulum-v1 {WORLD} --set planner.compile=off --decisions 300 "
    "--device cuda --out plain",
    "tdmpc2, resumed": "train tdmpc2 --out world --resume --decisions 400",
    "eval dt": "eval dt --checkpoint last --episodes 2 --device cuda",
    "eval tdmpc2": "eval world --checkpoint last --episodes 2 --device cuda",
}


def run(venv: str, command: str, folder: Path) -> tuple[int, str]:
    """Run a command of gq in a folder; return its exit code and what it said."""
    (folder / "shim.py").write_text(SHIM)
    environment = {**os.environ, "TORCHDYNAMO_DISABLE": "1", "GQ_HOME": str(folder / "home"), "GQ_DEBUG": "1"}
    environment["PYTHONPATH"] = str(HERE.parents[1] / "src")
    words = [str(HERE / "gpu"), "run", str(Path(venv).resolve()), "python", str(folder / "shim.py"), *command.split()]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("venv", help="made by tools/cardboard/gpu setup")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--update", action="store_true", help="write benchmarks/launches.json")
    given = parser.parse_args()
    if not (Path(given.venv) / "bin" / "python").exists():
        print(f"skipped: there is no CUDA build of torch in {given.venv}; tools/cardboard/gpu setup {given.venv}")
        return 0
    budget = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    found: dict[str, list[int]] = {}
    failed = []
    print("| case | exit | kernels of each graph | at most | faults |\n| --- | ---: | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name in given.cases:
            code, text = run(given.venv, CASES[name], Path(folder))
            graphs = sorted({int(number) for number in re.findall(r"ends: (\d+) nodes", text)})
            faults = [line for line in text.splitlines() if any(fault in line for fault in FAULTS)]
            found[name], most = graphs, budget.get(name, [])
            fits = len(graphs) == len(most) and all(map(int.__le__, graphs, most))
            print(f"| {name} | {code} | {graphs} | {most} | {len(faults)} |", flush=True)
            if code or faults or not (fits or given.update):
                failed.append(name)
                print("\n".join(faults[:5] or text.splitlines()[-8:]), file=sys.stderr)
    if given.update:
        BUDGET.write_text(json.dumps(budget | found, indent=1) + "\n")
    print(f"failed: {', '.join(failed)}" if failed else "all as it should be")
    return len(failed) > 0


if __name__ == "__main__":
    sys.exit(main())

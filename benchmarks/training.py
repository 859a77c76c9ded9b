"""The time and memory of a training step of a Decision Transformer: gq against what else can be installed.

    python benchmarks/training.py [--models paper 13m] [--contenders ...] [--peers-python PATH] [--rounds 7]

Each contender is a process of its own, and they take turns, a few updates at a time; the peers run under the
interpreter --peers-python, in which `pip install transformers d3rlpy` was done. All train the same shapes with the same
dropout on windows of 20 steps of Hopper, forward to optimiser; the peers get their batch ready-made, gq draws its own.
`plain` is written from the formulas and runs eagerly in float32; the program first shows how far gq's loss, with the
same weights and without dropout, is from its. Times are medians of an update, of the passing time and of the process's;
ratios are of the latter to the fastest peer's that runs as it was published, their range that of the rounds. Memory is
the process's largest resident set, torch included.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

OBSERVATION_DIM, ACTION_DIM, NUM_STEPS, MAX_TIMESTEP = 11, 3, 20, 1000
LEARNING_RATE, WEIGHT_DECAY, CLIP = 1e-4, 1e-4, 0.25
OWN = ("gq qwen3", "gq gpt2")
PEERS = ("transformers", "d3rlpy")
OTHERS = ("plain", "transformers bf16")  # shown, but not what the ratios are to
Update = Callable[[], Any]


@dataclass(frozen=True)
class Shape:
    """A model and its batch."""

    width: int
    num_layers: int
    num_heads: int  # of GPT-2
    batch_size: int


SHAPES = {"paper": Shape(128, 3, 1, 64), "13m": Shape(512, 4, 4, 256)}


# --- the contenders; each returns a function that takes one update ----------------------------------------------------


def make_own(backbone: str, shape: Shape, dropout: float) -> Update:
    """Build gq's learner as `gq train dt` does, on made-up episodes."""
    from gq.algos.supervised import SupervisedLearner
    from gq.config import OptimConfig, TrainConfig
    from gq.engine.precision import choose_compute

    compute = choose_compute("cpu")
    optim = OptimConfig(learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, gradient_clip=CLIP)
    learner = SupervisedLearner(
        make_model(backbone, shape, dropout),
        own_loss,
        make_sampler(),
        optim,
        TrainConfig(batch_size=shape.batch_size),
        autocast=compute.autocast,
    )
    steps = iter(range(10**9))
    return lambda: learner.update(next(steps))


def own_loss(model: Any, batch: Any) -> dict[str, Any]:
    from gq.algos.dt import action_loss

    return {"loss": action_loss(model, batch)}


def make_model(backbone: str, shape: Shape, dropout: float) -> Any:
    """Return gq's model: the paper's GPT-2, or the Qwen3 of the same size that is gq's default."""
    import torch

    from gq.models.decision_transformer import DecisionTransformer
    from gq.models.sizes import SIZES

    torch.manual_seed(0)
    config = replace(SIZES["1m" if shape.width == SHAPES["paper"].width else "13m"], dropout=dropout)
    if backbone == "gpt2":
        heads = {"num_heads": shape.num_heads, "num_kv_heads": shape.num_heads}
        config = replace(config, backbone="gpt2", mlp_ratio=4.0, activation="relu", **heads)
    assert (config.embed_dim, config.num_layers) == (shape.width, shape.num_layers)
    return DecisionTransformer(config, observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM)


def make_sampler() -> Any:
    import numpy as np

    from gq.data.sampler import WindowSampler
    from gq.data.trajectories import Trajectories

    generator, num_episodes = np.random.default_rng(0), 200
    num_rows = num_episodes * MAX_TIMESTEP
    trajectories = Trajectories(
        observations=generator.normal(size=(num_rows, OBSERVATION_DIM)).astype(np.float32),
        actions=generator.uniform(-1, 1, (num_rows, ACTION_DIM)).astype(np.float32),
        rewards=np.ones(num_rows, np.float32),
        terminals=np.zeros(num_rows, bool),
        offsets=np.arange(num_episodes + 1) * MAX_TIMESTEP,
        source="made up",
    )
    return WindowSampler(trajectories, NUM_STEPS)


def make_plain(shape: Shape, dropout: float) -> Update:
    """Return an update of the paper's model, one formula after the other, with torch's own optimiser."""
    import torch

    model, batch = make_model("gpt2", shape, dropout), make_sampler().sample(shape.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    return make_update(lambda: plain_loss(model, batch, dropout), model, optimizer)


def make_update(loss: Callable[[], Any], model: Any, optimizer: Any) -> Update:
    """Return an update in torch's usual order."""
    from torch import nn

    def update() -> None:
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    return update


def plain_loss(model: Any, batch: Any, dropout: float) -> Any:
    """Return the loss of a Decision Transformer over GPT-2 whose weights are those of gq's model."""
    import torch
    import torch.nn.functional as F

    weights = dict(model.named_parameters())

    def linear(name: str, x: Any) -> Any:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: Any) -> Any:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    num_tokens, num_heads = 3 * NUM_STEPS, model.config.num_heads
    position = weights["embed_position.weight"][batch.timesteps]
    inputs = {"return": batch.returns_to_go, "observation": batch.observations, "action": batch.actions}
    embedded = [linear(f"embed_{name}", values) + position for name, values in inputs.items()]
    x = F.dropout(norm("embed_norm", torch.stack(embedded, dim=2).flatten(1, 2)), dropout)
    later = torch.ones(num_tokens, num_tokens, dtype=torch.bool).triu(1)
    for number in range(model.config.num_layers):
        block = f"backbone.blocks.{number}"
        heads = linear(f"{block}.query_key_value", norm(f"{block}.attention_norm", x)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in heads)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        attention = F.dropout(scores.masked_fill(later, -math.inf).softmax(dim=-1), dropout)
        x = x + F.dropout(linear(f"{block}.output", (attention @ value).transpose(1, 2).flatten(2)), dropout)
        hidden = F.relu(linear(f"{block}.up", norm(f"{block}.mlp_norm", x)))
        x = x + F.dropout(linear(f"{block}.down", hidden), dropout)
    predicted = torch.tanh(linear("predict_action", norm("backbone.norm", x)[:, 1::3]))
    error = (predicted - batch.actions).square().mean(dim=-1)
    return (error * batch.valid).sum() / batch.valid.sum()


def make_arrays(shape: Shape) -> dict[str, Any]:
    """Return a batch without padding."""
    import numpy as np

    generator, rows = np.random.default_rng(0), (shape.batch_size, NUM_STEPS)
    return {
        "observations": generator.normal(size=(*rows, OBSERVATION_DIM)).astype(np.float32),
        "actions": generator.uniform(-1, 1, (*rows, ACTION_DIM)).astype(np.float32),
        "rewards": np.ones((*rows, 1), np.float32),
        "returns_to_go": generator.normal(size=(*rows, 1)).astype(np.float32),
        "timesteps": np.tile(np.arange(1, NUM_STEPS + 1), (shape.batch_size, 1)),
    }


def make_transformers(shape: Shape, dropout: float, *, bfloat16: bool) -> Update:
    import torch
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    config = DecisionTransformerConfig(
        state_dim=OBSERVATION_DIM,
        act_dim=ACTION_DIM,
        hidden_size=shape.width,
        max_ep_len=MAX_TIMESTEP,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        activation_function="relu",
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
    )
    model = DecisionTransformerModel(config).train()
    arrays = {name: torch.as_tensor(value) for name, value in make_arrays(shape).items()}
    inputs = {("states" if name == "observations" else name): value for name, value in arrays.items()}
    inputs["attention_mask"] = torch.ones(shape.batch_size, NUM_STEPS, dtype=torch.long)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            predicted = model(**inputs).action_preds
        return (predicted.float() - arrays["actions"]).square().mean()

    return make_update(loss, model, optimizer)


def make_d3rlpy(shape: Shape, dropout: float) -> Update:
    import d3rlpy
    import numpy as np

    rates = {f"{part}_dropout": dropout for part in ("attn", "resid", "embed")}
    algorithm = d3rlpy.algos.DecisionTransformerConfig(
        batch_size=shape.batch_size,
        learning_rate=LEARNING_RATE,
        encoder_factory=d3rlpy.models.VectorEncoderFactory([shape.width], exclude_last_activation=True),
        optim_factory=d3rlpy.optimizers.AdamWFactory(weight_decay=WEIGHT_DECAY, clip_grad_norm=CLIP),
        context_size=NUM_STEPS,
        max_timestep=MAX_TIMESTEP,
        num_heads=shape.num_heads,
        num_layers=shape.num_layers,
        **rates,
    ).create("cpu")
    algorithm.create_impl((OBSERVATION_DIM,), ACTION_DIM)
    arrays = make_arrays(shape)
    batch = d3rlpy.dataset.TrajectoryMiniBatch(
        **arrays | {"timesteps": arrays["timesteps"].astype(np.float32)},
        terminals=np.zeros_like(arrays["rewards"]),
        masks=np.ones(arrays["timesteps"].shape, np.float32),
        length=NUM_STEPS,
    )
    return lambda: algorithm.update(batch)


def make(contender: str, shape: Shape, dropout: float) -> Update:
    """Return the update of a contender."""
    if contender in OWN:
        return make_own(contender.removeprefix("gq "), shape, dropout)
    if contender == "plain":
        return make_plain(shape, dropout)
    if contender == "d3rlpy":
        return make_d3rlpy(shape, dropout)
    return make_transformers(shape, dropout, bfloat16=contender == "transformers bf16")


# --- the processes ----------------------------------------------------------------------------------------------------


def work(contender: str, model: str, dropout: float, num_threads: int) -> None:
    """Take as many updates as each line on stdin says; answer with times of each, and memory, one line each."""
    answers = os.fdopen(os.dup(1), "w")  # what libraries print must not come between
    os.dup2(2, 1)
    try:
        import torch

        torch.set_num_threads(num_threads)
        update = make(contender, SHAPES[model], dropout)
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), file=answers, flush=True)
        return
    print(json.dumps({}), file=answers, flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            began = time.perf_counter(), time.process_time()
            update()
            times.append((time.perf_counter() - began[0], time.process_time() - began[1]))
        print(json.dumps({"times": times, "peak_bytes": peak_bytes()}), file=answers, flush=True)


def peak_bytes() -> int:
    """Return the largest resident set of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss also remembers the process that this one was forked from
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Worker:
    """A contender's process."""

    def __init__(self, contender: str, model: str, options: argparse.Namespace) -> None:
        """Start it; the first update, which allocates, is not measured."""
        python = options.peers_python if contender.split()[0] in PEERS else sys.executable
        settings = ["--worker", contender, "--models", model, "--threads", str(options.threads)]
        command = [python, __file__, *settings, "--dropout", str(options.dropout)]
        errors = None if options.verbose else subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        self.times: list[list[tuple[float, float]]] = []
        self.peak_bytes = 0
        self.missing = self.read().get("missing")
        if not self.missing:
            self.turn(1)
            self.times.clear()

    def turn(self, num_updates: int) -> None:
        """Take some updates."""
        assert self.process.stdin
        print(num_updates, file=self.process.stdin, flush=True)
        answer = self.read()
        self.times.append(answer["times"])
        self.peak_bytes = answer["peak_bytes"]

    def read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"missing": "the process failed, see --verbose"}

    def medians(self, clock: int) -> list[float]:
        """Return the median seconds of each round by the wall's (0) or the process's (1) clock."""
        return [statistics.median(pair[clock] for pair in turn) for turn in self.times]

    def close(self) -> None:
        self.process.kill()  # nothing is lost, and libraries may take seconds to end by themselves
        self.process.communicate()


def measure(model: str, options: argparse.Namespace) -> None:
    """Print the table of one model."""
    shape = SHAPES[model]
    print(
        f"{model}: width {shape.width}, {shape.num_layers} layers, {shape.num_heads} heads, batch {shape.batch_size}, "
        f"dropout {options.dropout}, {options.threads} threads; loss within {loss_gap(shape):.1e} of plain"
    )
    workers = {name: Worker(name, model, options) for name in options.contenders}
    running = {name: worker for name, worker in workers.items() if not worker.missing}
    for _ in range(options.rounds):
        for worker in running.values():
            worker.turn(options.turn)
    peers = [name for name in PEERS if name in running] or [next(iter(running))]
    fastest = min(peers, key=lambda name: statistics.median(running[name].medians(1)))
    print(f"  {'':18}{'wall ms':>9}{'CPU ms':>9}{'as fast':>9}{'range':>15}{'MiB':>8}{'memory':>8}   to {fastest}")
    for name, worker in workers.items():
        worker.close()
        if worker.missing:
            print(f"  {name:18}not measured: {worker.missing}")
            continue
        theirs, ours = running[fastest].medians(1), worker.medians(1)
        ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
        wall = statistics.median(worker.medians(0))
        print(
            f"  {name:18}{1e3 * wall:9.1f}{1e3 * statistics.median(ours):9.1f}{statistics.median(ratios):9.2f}"
            f"{f'{min(ratios):.2f} to {max(ratios):.2f}':>15}{worker.peak_bytes / 2**20:8.0f}"
            f"{worker.peak_bytes / running[fastest].peak_bytes:8.0%}"
        )


def loss_gap(shape: Shape) -> float:
    """Return the relative difference of gq's loss, as it trains, from the plain one on the same weights and batch."""
    import torch

    from gq.engine.precision import choose_compute

    model, batch = make_model("gpt2", shape, 0.0), make_sampler().sample(64)
    with torch.no_grad(), choose_compute("cpu").autocast():
        found = float(own_loss(model, batch)["loss"])
    with torch.no_grad():
        return abs(found / float(plain_loss(model, batch, 0.0)) - 1)


def main() -> None:
    """Measure each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--contenders", nargs="+", default=[*OTHERS, *PEERS, *OWN], choices=[*OTHERS, *PEERS, *OWN])
    parser.add_argument("--peers-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turn", type=int, default=2, metavar="N", help="updates in a row")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--verbose", action="store_true", help="show what the contenders print")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.models[0], options.dropout, options.threads)
        return
    from gq import threads

    threads.prepare()  # for all contenders alike
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    for model in options.models:
        measure(model, options)


if __name__ == "__main__":
    main()

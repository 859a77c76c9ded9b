"""The time and memory of a training step of a Decision Transformer: gq against what else can be installed.

    python benchmarks/training.py [--models paper 13m] [--contenders ...] [--peers-python PATH] [--rounds 7]

Each contender is a process of its own, and they take turns, a few updates at a time; the peers run under the
interpreter --peers-python, in which `pip install transformers d3rlpy` was done. All train the same shapes with the same
dropout on windows of 20 steps of Hopper, forward to optimiser; the peers get their batch ready-made, gq draws its own.
`plain` is written from the formulas and runs eagerly in float32; the program first shows how far gq's loss, with the
same weights and without dropout, is from its. Times are medians of an update, of the passing time and of the process's;
ratios are to the fastest peer's that runs as it was published, of the process's time on a CPU and of the passing time
on a GPU, their range that of the rounds. Memory is the process's largest resident set, torch included; on a GPU the
most that lay there. There gq's updates are compiled and captured, before the first turn.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from common import Contender, Report, Table, begin, memory_bytes, ratios, timed

OBSERVATION_DIM, ACTION_DIM, MAX_TIMESTEP = 11, 3, 1000
LEARNING_RATE, WEIGHT_DECAY, CLIP = 1e-4, 1e-4, 0.25
OWN = ("gq qwen3", "gq gpt2")
PEERS = ("transformers", "d3rlpy")
OTHERS = ("plain", "transformers bf16")  # shown, but not what the ratios are to
WARM_UPS = {"cpu": 1, "cuda": 14}  # updates before the first turn: they allocate, compile, capture one and ten
Update = Callable[[], Any]


@dataclass(frozen=True)
class Shape:
    """A model and its batch."""

    size: str  # gq's name of the Qwen3 of this width and depth
    width: int
    num_layers: int
    num_heads: int  # of GPT-2
    batch_size: int
    num_steps: int = 20


SHAPES = {"paper": Shape("1m", 128, 3, 1, 64), "13m": Shape("13m", 512, 4, 4, 256)}


# --- the contenders; each returns a function that takes one update ----------------------------------------------------


def make_own(backbone: str, shape: Shape, dropout: float, device: str, sampler: Any = None) -> Update:
    """Build gq's learner as `gq train dt` does, on made-up episodes or what a sampler draws from."""
    from gq.algos.supervised import Execution, SupervisedLearner
    from gq.config import OptimConfig, TrainConfig
    from gq.policies.compute import choose_compute, choose_program

    compute = choose_compute(device)
    learner = SupervisedLearner(
        make_model(backbone, shape, dropout).to(compute.device),
        own_loss,
        sampler or make_sampler(shape, device),
        OptimConfig(learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, gradient_clip=CLIP),
        TrainConfig(batch_size=shape.batch_size),
        Execution(compute.autocast, program=choose_program("auto", compute.device)),
    )
    steps = iter(range(10**9))
    return lambda: learner.update(next(steps))


def own_loss(model: Any, batch: Any) -> dict[str, Any]:
    from gq.algos.dt import action_loss

    return {"loss": action_loss(model, batch)}


def make_model(backbone: str, shape: Shape, dropout: float) -> Any:
    """Return gq's model: the paper's GPT-2, or the Qwen3 of the same size that is gq's default."""
    import torch

    from gq.models.config import SIZES
    from gq.models.decision_transformer import DecisionTransformer

    torch.manual_seed(0)
    config = replace(SIZES[shape.size], dropout=dropout, context_length=shape.num_steps)
    if backbone == "gpt2":
        heads = {"num_heads": shape.num_heads, "num_kv_heads": shape.num_heads}
        config = replace(config, backbone="gpt2", mlp_ratio=4.0, activation="relu", **heads)
    assert (config.embed_dim, config.num_layers) == (shape.width, shape.num_layers)
    return DecisionTransformer(config, observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM)


def make_sampler(shape: Shape, device: str) -> Any:
    import numpy as np

    from gq.data.trajectories import Trajectories
    from gq.data.windows import WindowSampler

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
    return WindowSampler(trajectories, shape.num_steps, device=device)


def make_plain(shape: Shape, dropout: float, device: str) -> Update:
    """Return an update of the paper's model, one formula after the other, with torch's own optimiser."""
    import torch

    model, batch = make_model("gpt2", shape, dropout).to(device), make_sampler(shape, device).sample(shape.batch_size)
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

    num_tokens, num_heads, scaling = 3 * batch.valid.shape[1], model.config.num_heads, model.scaling
    position = weights["embed_position.weight"][batch.timesteps]
    actions = scaling.scale_actions(batch.actions)
    inputs = {
        "return": scaling.scale_returns(batch.returns_to_go),
        "observation": scaling.scale_observations(batch.observations),
        "action": actions,
    }
    embedded = [linear(f"embed_{name}", values) + position for name, values in inputs.items()]
    x = F.dropout(norm("embed_norm", torch.stack(embedded, dim=2).flatten(1, 2)), dropout)
    later = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=x.device).triu(1)
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
    error = (predicted - actions).square().mean(dim=-1)
    return (error * batch.valid).sum() / batch.valid.sum()


def make_arrays(shape: Shape) -> dict[str, Any]:
    """Return a batch without padding."""
    import numpy as np

    generator, rows = np.random.default_rng(0), (shape.batch_size, shape.num_steps)
    return {
        "observations": generator.normal(size=(*rows, OBSERVATION_DIM)).astype(np.float32),
        "actions": generator.uniform(-1, 1, (*rows, ACTION_DIM)).astype(np.float32),
        "rewards": np.ones((*rows, 1), np.float32),
        "returns_to_go": generator.normal(size=(*rows, 1)).astype(np.float32),
        "timesteps": np.tile(np.arange(1, shape.num_steps + 1), (shape.batch_size, 1)),
    }


def make_transformers(shape: Shape, dropout: float, device: str, *, bfloat16: bool) -> Update:
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
    model = DecisionTransformerModel(config).to(device).train()
    arrays = {name: torch.as_tensor(value, device=device) for name, value in make_arrays(shape).items()}
    inputs = {("states" if name == "observations" else name): value for name, value in arrays.items()}
    inputs["attention_mask"] = torch.ones(shape.batch_size, shape.num_steps, dtype=torch.long, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def loss() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            predicted = model(**inputs).action_preds
        return (predicted.float() - arrays["actions"]).square().mean()

    return make_update(loss, model, optimizer)


def make_d3rlpy(shape: Shape, dropout: float, device: str) -> Update:
    import d3rlpy
    import numpy as np

    rates = {f"{part}_dropout": dropout for part in ("attn", "resid", "embed")}
    algorithm = d3rlpy.algos.DecisionTransformerConfig(
        batch_size=shape.batch_size,
        learning_rate=LEARNING_RATE,
        encoder_factory=d3rlpy.models.VectorEncoderFactory([shape.width], exclude_last_activation=True),
        optim_factory=d3rlpy.optimizers.AdamWFactory(weight_decay=WEIGHT_DECAY, clip_grad_norm=CLIP),
        context_size=shape.num_steps,
        max_timestep=MAX_TIMESTEP,
        num_heads=shape.num_heads,
        num_layers=shape.num_layers,
        **rates,
    ).create("cpu" if device == "cpu" else "cuda:0")
    algorithm.create_impl((OBSERVATION_DIM,), ACTION_DIM)
    arrays = make_arrays(shape)
    batch = d3rlpy.dataset.TrajectoryMiniBatch(
        **arrays | {"timesteps": arrays["timesteps"].astype(np.float32)},
        terminals=np.zeros_like(arrays["rewards"]),
        masks=np.ones(arrays["timesteps"].shape, np.float32),
        length=shape.num_steps,
    )
    return lambda: algorithm.update(batch)


def make(contender: str, shape: dict[str, Any], dropout: float, device: str) -> Callable[[int], dict[str, Any]]:
    """Return what takes a number of updates of a contender and tells the seconds of one, and memory."""
    import torch

    builders = {"plain": make_plain, "d3rlpy": make_d3rlpy}
    if contender in OWN:
        update = make_own(contender.removeprefix("gq "), Shape(**shape), dropout, device)
    elif builder := builders.get(contender):
        update = builder(Shape(**shape), dropout, device)
    else:
        update = make_transformers(Shape(**shape), dropout, device, bfloat16=contender == "transformers bf16")

    def take(num_updates: int) -> None:
        for _ in range(num_updates):
            update()
        if device == "cuda":
            torch.cuda.synchronize()

    def turn(num_updates: int) -> dict[str, Any]:
        took = {name: seconds / num_updates for name, seconds in timed(lambda: take(num_updates)).items()}
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else memory_bytes("VmHWM")
        return {**took, "peak_bytes": peak}

    return turn


def start(contender: str, shape: Shape, options: argparse.Namespace) -> Contender:
    """Start a contender and let it warm up."""
    python = options.peers_python if contender.split()[0] in PEERS else sys.executable
    settings = {"contender": contender, "shape": asdict(shape), "dropout": options.dropout, "device": options.device}
    found = Contender(__file__, python, options, **settings)
    if not found.missing:
        found.turn(WARM_UPS[options.device], counts=False)
    return found


# --- the table --------------------------------------------------------------------------------------------------------


def measure(model: str, options: argparse.Namespace, report: Report) -> None:
    """Print the table of one model."""
    shape = SHAPES[model]
    title = (
        f"{model}: width {shape.width}, {shape.num_layers} layers, {shape.num_heads} heads, batch {shape.batch_size}, "
        f"dropout {options.dropout}, {options.threads} threads; loss within {loss_gap(shape):.1e} of plain"
    )
    contenders = {name: start(name, shape, options) for name in options.contenders}
    running = {name: contender for name, contender in contenders.items() if not contender.missing}
    for _ in range(options.rounds):
        for contender in running.values():
            contender.turn(options.turn)
    clock = "cpu" if options.device == "cpu" else "wall"
    peers = [name for name in PEERS if name in running] or [next(iter(running))]
    fastest = min(peers, key=lambda name: running[name].median(clock))
    columns = {
        "contender": (18, ""),
        "wall ms": (9, ".1f"),
        "CPU ms": (9, ".1f"),
        "as fast": (9, ".2f"),
        "range": (15, ""),
    }
    table = report.table(title, {**columns, "MiB": (8, ".0f"), "memory": (8, ".0%")})
    for name, contender in contenders.items():
        contender.close()
        if contender.missing:
            table.note(f"{name} was not measured: {contender.missing}")
            continue
        add_row(table, name, contender, running[fastest], clock)
    table.note(f"as fast, memory: against {fastest}")


def add_row(table: Table, name: str, contender: Contender, baseline: Contender, clock: str) -> None:
    """Add a contender's row."""
    ratio, spread = ratios(baseline.each(clock), contender.each(clock))
    peak, theirs = (max(found.each("peak_bytes")) for found in (contender, baseline))
    wall, cpu = 1e3 * contender.median("wall"), 1e3 * contender.median("cpu")
    table.add(name, wall, cpu, ratio, spread, peak / 2**20, peak / theirs)


def loss_gap(shape: Shape) -> float:
    """Return the relative difference of gq's loss, as it trains, from the plain one on the same weights and batch."""
    import torch

    from gq.policies.compute import choose_compute

    model, batch = make_model("gpt2", shape, 0.0), make_sampler(shape, "cpu").sample(64)
    with torch.no_grad(), choose_compute("cpu").autocast():
        found = float(own_loss(model, batch)["loss"])
    with torch.no_grad():
        return abs(found / float(plain_loss(model, batch, 0.0)) - 1)


def main() -> None:
    """Measure each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--contenders", nargs="+", default=[*OTHERS, *PEERS, *OWN], choices=[*OTHERS, *PEERS, *OWN])
    parser.add_argument("--turn", type=int, default=2, metavar="N", help="updates in a row")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--device", choices=WARM_UPS, default="cpu")
    options = begin(parser, make, rounds=7)
    report = Report(options)
    for model in options.models:
        measure(model, options, report)
    report.save()


if __name__ == "__main__":
    main()

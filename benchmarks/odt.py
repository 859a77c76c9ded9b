"""Online Decision Transformer: the time of an update, and how much of an iteration of `gq finetune` the rollouts take.

    python benchmarks/odt.py update
    python benchmarks/odt.py update --embed-dim 128 --layers 3 --backbone qwen3 --rounds 20
    python benchmarks/odt.py rollouts
    python benchmarks/odt.py rollouts --run RUN_FOLDER --iterations 5

`update` times gq's learner, with the number format that gq chooses, against a plain eager reference in float32 that
takes turns with it on the same cores. The reference is written from the paper's formulas as one would write it first:
windows put together one by one and padded on the left, all three kinds of tokens through every layer, softmax attention
with an additive mask, one entropy sample, LAMB as a loop over the parameters. Data are random, in Hopper's shape.

`rollouts` finetunes a given run, or one of a few updates that it makes first: of HalfCheetah, whose episodes all have
1000 steps, so that rollouts cost as much as they can. "Share" is of an iteration without its evaluation, "added" is
over the updates alone.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from common import Report, add_options, ratios

from gq import threads

threads.prepare()

import h5py  # noqa: E402  after the thread settings
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from gq import presets  # noqa: E402
from gq.algos.odt import ODTLearner  # noqa: E402
from gq.algos.supervised import Execution  # noqa: E402
from gq.config import EntropyConfig, OptimConfig, UpdateConfig  # noqa: E402
from gq.data.replay import LoggedEpisode, ReplayBuffer  # noqa: E402
from gq.learn import (  # noqa: E402
    finetune,
    prepare_finetuning,
    train,
)
from gq.models.config import StochasticModelConfig  # noqa: E402
from gq.models.stochastic_transformer import StochasticTransformer  # noqa: E402
from gq.policies.compute import Compute, choose_compute  # noqa: E402

OBSERVATION_DIM, ACTION_DIM = 11, 3  # Hopper's
NUM_EPISODES, CONTEXT_LENGTH, NUM_HEADS, MLP_RATIO, DROPOUT = 200, 20, 4, 4, 0.1
LEARNING_RATE, WEIGHT_DECAY, GRADIENT_CLIP, CLIP, TEMPERATURE = 1e-4, 5e-4, 0.25, 1e-6, 0.1
RETURN_SCALE = 1000.0
MASKED = -1e4  # added to the score of what may not be attended to
NUM_PROFILED, NUM_SHOWN = 3, 12


def random_episodes(seed: int = 0) -> list[LoggedEpisode]:
    """Return episodes of 100 to 1000 steps."""
    generator = np.random.default_rng(seed)
    return [
        LoggedEpisode(
            generator.standard_normal((length, OBSERVATION_DIM), np.float32),
            generator.uniform(-1, 1, (length, ACTION_DIM)).astype(np.float32),
            generator.uniform(0, 4, length).astype(np.float32),
            terminated=True,
        )
        for length in generator.integers(100, 1001, NUM_EPISODES)
    ]


# --- the reference ----------------------------------------------------------------------------------------------------


class PlainBlock(nn.Module):
    """A pre-norm block of GPT-2."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.query_key_value, self.output = nn.Linear(embed_dim, 3 * embed_dim), nn.Linear(embed_dim, embed_dim)
        self.up, self.down = nn.Linear(embed_dim, MLP_RATIO * embed_dim), nn.Linear(MLP_RATIO * embed_dim, embed_dim)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        shape = (*x.shape[:2], NUM_HEADS, x.shape[2] // NUM_HEADS)
        projected = self.query_key_value(self.attention_norm(x)).chunk(3, dim=-1)
        query, key, value = (part.view(shape).transpose(1, 2) for part in projected)  # [B, N, T, D]
        scores = query @ key.transpose(-1, -2) / math.sqrt(shape[-1]) + mask
        attended = self.dropout(torch.softmax(scores, dim=-1)) @ value
        x = x + self.dropout(self.output(attended.transpose(1, 2).reshape(x.shape)))
        return x + self.dropout(self.down(torch.relu(self.up(self.mlp_norm(x)))))


class PlainODT(nn.Module):
    """Mean and log standard deviation of the actions before tanh, from windows padded on the left."""

    def __init__(self, embed_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = (1, OBSERVATION_DIM, ACTION_DIM)
        self.embeddings = nn.ModuleList(nn.Linear(width, embed_dim) for width in widths)
        self.embed_norm, self.norm, self.dropout = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim), nn.Dropout(DROPOUT)
        self.blocks = nn.ModuleList(PlainBlock(embed_dim) for _ in range(num_layers))
        self.mean, self.log_std = nn.Linear(embed_dim, ACTION_DIM), nn.Linear(embed_dim, ACTION_DIM)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for head in (self.mean, self.log_std):
            nn.init.orthogonal_(head.weight)

    def forward(self, inputs: list[Tensor], valid: Tensor) -> tuple[Tensor, Tensor]:
        embedded = [embed(values) for embed, values in zip(self.embeddings, inputs, strict=True)]
        tokens = torch.stack(embedded, dim=2).flatten(1, 2)  # [B, 3K, H]
        x = self.dropout(self.embed_norm(tokens))
        num_tokens = x.shape[1]
        future = torch.ones(num_tokens, num_tokens).triu(1) * MASKED
        padding = (1 - valid.repeat_interleave(3, dim=1)[:, None, None]) * MASKED
        for block in self.blocks:
            x = block(x, future + padding)
        hidden = self.norm(x)[:, 1::3]
        return self.mean(hidden), -5 + 3.5 * (torch.tanh(self.log_std(hidden)) + 1)


class PlainLamb:
    """p <- p - lr * ||p|| / ||u|| * u, u = m / (sqrt(v) + eps) + decay * p."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]
        self.num_steps = 0

    @torch.no_grad()
    def step(self) -> None:
        self.num_steps += 1
        for parameter, (first, second) in zip(self.parameters, self.moments, strict=True):
            assert parameter.grad is not None
            first.mul_(0.9).add_(parameter.grad, alpha=0.1)
            second.mul_(0.999).addcmul_(parameter.grad, parameter.grad, value=0.001)
            mean, square = first / (1 - 0.9**self.num_steps), second / (1 - 0.999**self.num_steps)
            update = mean / (square.sqrt() + 1e-8) + WEIGHT_DECAY * parameter
            size, length = parameter.norm().item(), update.norm().item()
            parameter.add_(update, alpha=-LEARNING_RATE * (size / length if size > 0 and length > 0 else 1.0))


class PlainLearner:
    """The whole update, eagerly in float32."""

    def __init__(self, episodes: list[LoggedEpisode], *, embed_dim: int, num_layers: int, batch_size: int) -> None:
        self.episodes, self.batch_size = episodes, batch_size
        self.labels = [np.cumsum(episode.rewards[::-1])[::-1, None] / RETURN_SCALE for episode in episodes]
        lengths = np.array([len(episode.rewards) for episode in episodes])
        self.shares, self.generator = lengths / lengths.sum(), np.random.default_rng(0)
        self.model = PlainODT(embed_dim, num_layers)
        self.optimizer = PlainLamb(self.model.parameters())
        self.log_temperature = torch.tensor(math.log(TEMPERATURE), dtype=torch.float64, requires_grad=True)
        self.temperature_optimizer = torch.optim.Adam([self.log_temperature], lr=1e-4)

    def draw(self) -> tuple[list[Tensor], Tensor]:
        """Return returns-to-go, observations and actions [B, K, *], padded on the left, and what is real [B, K]."""
        windows = []
        for number in self.generator.choice(len(self.episodes), self.batch_size, p=self.shares):
            episode = self.episodes[number]
            start = self.generator.integers(len(episode.rewards))
            rows = slice(start, start + CONTEXT_LENGTH)
            parts = [self.labels[number][rows], episode.observations[rows], episode.actions[rows]]
            padding = ((CONTEXT_LENGTH - len(parts[0]), 0), (0, 0))
            windows.append([np.pad(part, padding) for part in (*parts, np.ones((len(parts[0]), 1)))])
        columns = [torch.as_tensor(np.stack(column), dtype=torch.float32) for column in zip(*windows, strict=True)]
        return columns[:3], columns[3][..., 0]

    def loss(self, inputs: list[Tensor], valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the entropy."""
        mean, log_std = self.model(inputs, valid)
        normal = torch.distributions.Normal(mean, log_std.exp())

        def log_prob(before: Tensor) -> Tensor:
            slope = 2 * (math.log(2) - before - F.softplus(-2 * before))
            return ((normal.log_prob(before) - slope).sum(dim=-1) * valid).sum() / valid.sum()

        nll = -log_prob(torch.atanh(inputs[2].clamp(-1 + CLIP, 1 - CLIP)))
        entropy = -log_prob(normal.rsample())
        return nll - self.log_temperature.exp().item() * entropy, entropy

    def update(self) -> None:
        loss, entropy = self.loss(*self.draw())
        self.model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_CLIP)
        self.optimizer.step()
        self.temperature_optimizer.zero_grad()
        (self.log_temperature.exp() * (entropy.item() + ACTION_DIM)).backward()
        self.temperature_optimizer.step()


# --- the update -------------------------------------------------------------------------------------------------------


def gq_learner(episodes: list[LoggedEpisode], options: argparse.Namespace, compute: Compute) -> ODTLearner:
    """Return gq's learner of the same shape; three MLP matrices of qwen3 get as many parameters as two of gpt2."""
    is_gpt2 = options.backbone == "gpt2"
    model = StochasticTransformer(
        StochasticModelConfig(
            backbone=options.backbone,
            embed_dim=options.embed_dim,
            num_layers=options.layers,
            num_heads=NUM_HEADS,
            num_kv_heads=NUM_HEADS,
            mlp_ratio=MLP_RATIO if is_gpt2 else MLP_RATIO * 2 / 3,
            activation="relu" if is_gpt2 else "silu",
            dropout=DROPOUT,
            context_length=CONTEXT_LENGTH,
        ),
        observation_dim=OBSERVATION_DIM,
        action_dim=ACTION_DIM,
    ).to(compute.device)
    model.scaling.return_scale.fill_(RETURN_SCALE)
    buffer = ReplayBuffer(
        NUM_EPISODES,
        CONTEXT_LENGTH,
        observation_dim=OBSERVATION_DIM,
        action_dim=ACTION_DIM,
        device=compute.device,
    )
    for number, episode in enumerate(episodes):
        buffer.add(f"online/{number}", episode)
    optim = OptimConfig(
        optimizer="lamb",
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        warmup_steps=0,
        schedule="constant",
        gradient_clip=GRADIENT_CLIP,
    )
    update = UpdateConfig(batch_size=options.batch_size)
    return ODTLearner(model, buffer, optim, update, EntropyConfig(), Execution(compute.autocast))


def seconds_of(update: Callable[[], object]) -> float:
    """Return the seconds that one update takes."""
    began = time.perf_counter()
    update()
    return time.perf_counter() - began


def profile(update: Callable[[], object]) -> None:
    """Print the operations that an update spends most time in."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(NUM_PROFILED):
            update()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    print(f"{'operation':44} {'ms':>9} {'share':>6} {'calls':>7}   (self time, per update)")
    for event in sorted(events, key=lambda event: -event.self_cpu_time_total)[:NUM_SHOWN]:
        milliseconds = event.self_cpu_time_total / 1e3 / NUM_PROFILED
        share = event.self_cpu_time_total / total
        print(f"{event.key[:44]:44} {milliseconds:9.1f} {share:6.1%} {event.count / NUM_PROFILED:7.0f}")


def measure_update(options: argparse.Namespace) -> None:
    """Print the medians of both updates and their ratio."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    compute, episodes = choose_compute("cpu"), random_episodes()
    plain = PlainLearner(
        episodes, embed_dim=options.embed_dim, num_layers=options.layers, batch_size=options.batch_size
    )
    learner = gq_learner(episodes, options, compute)
    counts = [sum(p.numel() for p in model.parameters()) for model in (plain.model, learner.model)]
    print(
        f"embed_dim {options.embed_dim}, {options.layers} layers, batch {options.batch_size}, K {CONTEXT_LENGTH}, "
        f"{torch.get_num_threads()} threads, medians of {options.rounds}\n"
        f"reference: {counts[0]:,} parameters, float32\ngq: {options.backbone}, {counts[1]:,} parameters, {compute}"
    )
    seconds_of(plain.update), seconds_of(lambda: learner.update(0))  # warm up
    pairs = [(seconds_of(plain.update), seconds_of(lambda: learner.update(1))) for _ in range(options.rounds)]
    plain_seconds, gq_seconds = (statistics.median(column) for column in zip(*pairs, strict=True))
    report = Report(options)
    columns = {"update": (12, ""), "s": (10, ".3f"), "as fast": (9, ".2f"), "range": (16, "")}
    table = report.table(f"an update at embed_dim {options.embed_dim}, {options.layers} layers", columns)
    reference, own = zip(*pairs, strict=True)
    table.add("reference", plain_seconds, *ratios(reference, reference))
    table.add("gq", gq_seconds, *ratios(reference, own))
    report.save()
    if options.profile:
        profile(lambda: learner.update(1))


# --- the rollouts -----------------------------------------------------------------------------------------------------


def make_run(folder: Path, size: str) -> Path:
    """Pretrain on random data for a few updates; return the run."""
    generator, num_rows, length = np.random.default_rng(0), 20_000, 1000
    timeouts = np.arange(1, num_rows + 1) % length == 0
    with h5py.File(folder / "random.hdf5", "w") as file:
        file["observations"] = generator.standard_normal((num_rows, 17), np.float32)
        file["actions"] = generator.uniform(-1, 1, (num_rows, 6)).astype(np.float32)
        file["rewards"] = generator.uniform(0, 5, num_rows).astype(np.float32)
        file["terminals"], file["timeouts"] = np.zeros(num_rows, bool), timeouts
        file.attrs["env_id"] = "HalfCheetah-v5"
    given = {"data.dataset": str(folder / "random.hdf5"), "train.steps": 5, "eval.every": 0}
    return train(presets.odt(size).replace(given), folder / "parent").run


def measure_rollouts(options: argparse.Namespace) -> None:
    """Print the share of rollouts in the time of an iteration."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = {
            "online.environment_steps": 0,
            "online.iterations": options.iterations,
            "online.rollouts": options.rollouts,
            "online.updates_per_rollout": options.updates,
            "online.final_episodes": 0,
            "eval.every": 0,
            "eval.num_episodes": 1,
        }
        parent = options.run or make_run(folder, options.size)
        config, trajectories = prepare_finetuning(parent, "last", given)
        result = finetune(config, folder / "finetuned", trajectories=trajectories)
    working = result.seconds - result.evaluation_seconds
    print(
        f"{config.task}, {config.size}, batch {config.train.batch_size}, {torch.get_num_threads()} threads: "
        f"{result.iterations} iterations of {options.rollouts} rollouts and {result.steps // result.iterations} updates"
    )
    header = f"{'steps':>7} {'iteration s':>12} {'rollouts s':>11} {'ms/step':>8} {'ms/update':>10}"
    print(f"{header} {'share':>7} {'added':>7}")
    per_step = result.rollout_seconds / result.environment_steps
    per_update = (working - result.rollout_seconds) / result.steps
    print(
        f"{result.environment_steps:7} {working / result.iterations:12.2f} "
        f"{result.rollout_seconds / result.iterations:11.2f} {1e3 * per_step:8.3f} {1e3 * per_update:10.2f} "
        f"{result.rollout_seconds / working:7.1%} {result.rollout_seconds / (working - result.rollout_seconds):7.1%}"
    )


def main() -> None:
    """Run one of the two measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    update = commands.add_parser("update", help="the time of one update")
    update.add_argument("--rounds", type=int, default=5)
    update.add_argument("--batch-size", type=int, default=256)
    update.add_argument("--embed-dim", type=int, default=512)
    update.add_argument("--layers", type=int, default=4)
    update.add_argument("--backbone", choices=("gpt2", "qwen3"), default="gpt2")
    update.add_argument("--profile", action="store_true", help="also show where gq's update spends its time")
    add_options(update)
    update.set_defaults(measure=measure_update)
    rollouts = commands.add_parser("rollouts", help="the share of rollouts in an iteration")
    rollouts.add_argument("--run", type=Path, help="folder of a run of gq train odt; without it one is made")
    rollouts.add_argument("--size", default="tiny", help="of the run that is made")
    rollouts.add_argument("--iterations", type=int, default=3)
    rollouts.add_argument("--rollouts", type=int, default=1)
    rollouts.add_argument("--updates", type=int, default=300, help="per rollout")
    rollouts.set_defaults(measure=measure_rollouts)
    options = parser.parse_args()
    options.measure(options)


if __name__ == "__main__":
    main()

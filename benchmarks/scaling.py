"""A training step of a Decision Transformer over batch, context and size: gq against a plain eager one.

    python benchmarks/scaling.py [--batches 16 64 256] [--contexts 5 20 60] [--sizes 1m 13m 0.1b] [--rounds 3]
    python benchmarks/scaling.py --device cuda --sizes 1m 13m 0.1b 0.6b 1.9b --size-batch 64

Batches and contexts are changed one at a time, of --base with 64 windows of 20 steps; sizes have --size-batch windows
of 20. The contenders are those of training.py, in processes of their own that take turns: gq's Qwen3 of a size and
--against, by default the plain GPT-2 of the same width and depth in float32. Times are those of an update, medians, of
the process on a CPU and passing on a GPU; tokens are three a step. Memory is the process's largest resident set, torch
included; on a GPU the most that lay there.
"""

import argparse
from dataclasses import replace

from common import Report, Table, begin, ratios
from training import OTHERS, OWN, PEERS, WARM_UPS, Shape, make, start

BASE_BATCH, BASE_STEPS, TOKENS_PER_STEP = 64, 20, 3
HEADS = {"1m": 1, "13m": 4, "0.1b": 12, "0.6b": 12, "1.9b": 16}  # of GPT-2


def shape_of(size: str, batch_size: int, num_steps: int) -> Shape:
    """Return a size's shape."""
    from gq.models.config import resolve_size

    config = resolve_size(size)
    return Shape(size, config.embed_dim, config.num_layers, HEADS[size], batch_size, num_steps)


def shapes(options: argparse.Namespace) -> dict[str, list[Shape]]:
    """Return what is measured, by what changes in it."""
    base = shape_of(options.base, BASE_BATCH, BASE_STEPS)
    return {
        "batch": [replace(base, batch_size=batch_size) for batch_size in options.batches],
        "context": [replace(base, num_steps=num_steps) for num_steps in options.contexts],
        "size": [shape_of(size, options.size_batch, BASE_STEPS) for size in options.sizes],
    }


def measure(shape: Shape, options: argparse.Namespace, table: Table) -> None:
    """Add the row of a shape."""
    ours, theirs = (start(name, shape, options) for name in (options.contender, options.against))
    running = [contender for contender in (ours, theirs) if not contender.missing]
    for _ in range(options.rounds):
        for contender in running:
            contender.turn(options.turn)
    for contender in (ours, theirs):
        contender.close()
    assert ours in running, f"{options.contender} was not measured: {ours.missing}"
    clock = "cpu" if options.device == "cpu" else "wall"
    num_tokens = TOKENS_PER_STEP * shape.num_steps * shape.batch_size
    own = (1e3 * ours.median(clock), num_tokens / ours.median(clock), ours.each("peak_bytes")[-1] / 2**20)
    if theirs.missing:  # it may not fit where gq does
        table.add(shape.size, shape.batch_size, shape.num_steps, *own, None, None, None, None)
        table.note(f"{options.against} was not measured: {theirs.missing}")
        return
    ratio, spread = ratios(theirs.each(clock), ours.each(clock))
    others = (1e3 * theirs.median(clock), theirs.each("peak_bytes")[-1] / 2**20)
    table.add(shape.size, shape.batch_size, shape.num_steps, *own, *others, ratio, spread)


def main() -> None:
    """Measure along batches, contexts and sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", nargs="*", type=int, default=[16, 64, 256])
    parser.add_argument("--contexts", nargs="*", type=int, default=[5, 20, 60])
    parser.add_argument("--sizes", nargs="*", default=["1m", "13m", "0.1b"], choices=HEADS)
    parser.add_argument("--base", default="1m", choices=HEADS, help="size of the first two tables")
    parser.add_argument("--size-batch", type=int, default=16, help="windows in the third")
    parser.add_argument("--contender", default="gq qwen3", choices=OWN)
    parser.add_argument("--against", default="plain", choices=[*OTHERS, *PEERS])
    parser.add_argument("--turn", type=int, default=1, metavar="N", help="updates in a row")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--device", choices=WARM_UPS, default="cpu")
    options = begin(parser, make, rounds=3)
    report = Report(options)
    where = f"{options.threads} threads, {options.rounds} rounds" if options.device == "cpu" else options.device
    own = {"ms": (10, ".1f"), "tokens/s": (12, ",.0f"), "MiB": (8, ",.0f")}
    theirs = {f"{options.against} ms": (12, ".1f"), f"{options.against} MiB": (13, ",.0f")}
    columns = {"size": (6, ""), "batch": (7, ""), "K": (5, ""), **own, **theirs, "as fast": (9, ".2f")}
    for changed, chosen in shapes(options).items():
        if chosen:
            table = report.table(f"{options.contender} by {changed}; {where}", {**columns, "range": (15, "")})
        for shape in chosen:
            measure(shape, options, table)
    report.save()


if __name__ == "__main__":
    main()

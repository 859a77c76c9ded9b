"""`gq params --device`: what training takes elsewhere."""

import dataclasses
from typing import TYPE_CHECKING, Any

from gq.cli.output import Output
from gq.cli.training_view import clock, rounded

if TYPE_CHECKING:
    from gq.config import TransformerConfig
    from gq.devices import Device
    from gq.predictions import Prediction

MEMORY_ROWS = {  # of a prediction's memory
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimiser",
    "copies": "copies",
    "activations": "activations",
    "data": "data",
    "kv_cache": "KV cache",
    "context": "CUDA",
}
STEP_ROWS = {  # of its step
    "products": "matrix products",
    "memory": "bandwidth",
    "optimizer": "optimiser",
    "launches": "launches",
    "exchange": "exchange",
    "total": "update",
}


def show_predictions(
    output: Output,
    size: str | None,
    run_config: "TransformerConfig | None",
    task: str | None,
    num_transitions: int | None,
    batch_size: int | None,
    device_name: str,
    world_size: int,
) -> None:
    """Print what training takes on a device: of one size or run in all ways, or of all sizes in their best ways."""
    from gq import presets
    from gq.devices import resolve_device
    from gq.envs.tasks import resolve_task
    from gq.models.sizes import SIZES
    from gq.predictions import ASSUMED_TRANSITIONS, best_way, devices_needed, ways_to_train

    assumed = "" if num_transitions else ", assumed"
    num_transitions = num_transitions or ASSUMED_TRANSITIONS
    interface = resolve_task(task or (run_config.task if run_config else "Humanoid-v5"))
    configs = [run_config] if run_config else [presets.dt(name) for name in ([size] if size else SIZES)]
    if batch_size:
        configs = [config.replace({"train.batch_size": batch_size}) for config in configs]
    device = resolve_device(device_name)
    known: dict[str, Any] = {
        "observation_dim": interface.observation_dim,
        "action_dim": interface.action_dim,
        "num_transitions": num_transitions,
    }
    ways = [ways_to_train(config, device, **known, world_size=world_size) for config in configs]
    needed = [devices_needed(config, device, **known) for config in configs]
    best = [best_way(each) for each in ways]
    document = {
        "task": interface.id,
        "device": dataclasses.asdict(device),
        "world_size": world_size,
        "num_transitions": num_transitions,
        "models": [
            {
                "size": one.size,
                "devices_needed": number,
                "best": dataclasses.asdict(one),
                "ways": [dataclasses.asdict(way) for way in each],
            }
            for one, number, each in zip(best, needed, ways, strict=True)
        ],
    }
    head = f"{device.name}" if world_size == 1 else f"{world_size} x {device.name}"
    if len(best) == 1:
        body = one_model(output, ways[0], best[0], needed[0], device)
    else:
        body = all_models(output, best, needed, device)
    basis = f"{assumptions(device)}; {num_transitions:,} transitions of data{assumed}"
    from rich.console import Group

    human = Group(f"Training Decision Transformers for {interface.id} on {head}", *body, basis)
    output.result(document, quiet="\n".join(f"{one.step.total:.6f}" for one in best), human=human)


def one_model(
    output: Output, ways: list["Prediction"], best: "Prediction", needed: int | None, device: "Device"
) -> list[Any]:
    """Return all parts of memory and time, one column for each way to train, and what to type for the best."""
    memory = [(label, *(size_of(getattr(way.memory, key)) for way in ways)) for key, label in MEMORY_ROWS.items()]
    memory.append((f"in all, of {size_of(device.memory_bytes)}", *(size_of(way.memory_bytes) for way in ways)))
    memory.append(("fits", *("yes" if way.fits else "no" for way in ways)))
    step = [(label, *(f"{1e3 * getattr(way.step, key):.2f}" for way in ways)) for key, label in STEP_ROWS.items()]
    step.append(("tokens/s", *(rounded(way.tokens_per_second) for way in ways)))
    step.append(("MFU", *(f"{100 * way.mfu:.0f} %" for way in ways)))
    if best.steps:
        step.append((f"{best.steps} updates", *(clock(way.training_seconds) for way in ways)))
    names = ["checkpointed" if w.checkpoint_activations else w.parallel if w.world_size > 1 else "plain" for w in ways]
    precision = "bfloat16" if best.bfloat16 else "float32"
    return [
        f"{best.size}: {best.parameters:,} parameters, {precision}, {best.batch_size} windows in an update, "
        f"{best.windows_per_device} at once on a device",
        output.table(["memory of a device", *names], memory),
        output.table(["ms of an update", *names], step),
        verdict(best, needed, device),
    ]


def verdict(best: "Prediction", needed: int | None, device: "Device") -> str:
    """Return whether it fits, on how many devices it would, and with which settings."""
    if not best.fits:
        if needed is None:
            return f"does not fit on any number of {device.name}: fewer windows at once, train.num_micro_batches"
        return f"does not fit; it does on {needed} {device.name}"
    changed = [f"train.parallel={best.parallel}"] if best.world_size > 1 else []
    changed += ["train.checkpoint_activations=true"] if best.checkpoint_activations else []
    settings = "".join(f" --set {change}" for change in changed)
    fewest = "" if needed == best.world_size else f"; {needed} would do for its memory"
    return f"fits{fewest}" + (f"; best with{settings}" if settings else "")


def all_models(output: Output, best: list["Prediction"], needed: list[int | None], device: "Device") -> list[Any]:
    """Return one row for each size."""
    rows = [
        (
            one.size,
            size_of(one.memory_bytes),
            "yes" if one.fits else "no",
            "-" if number is None else str(number),
            f"{1e3 * one.step.total:.2f} ms",
            rounded(one.tokens_per_second),
            f"{100 * one.mfu:.0f} %",
            clock(one.training_seconds),
        )
        for one, number in zip(best, needed, strict=True)
    ]
    headings = ["size", "memory", "fits", "devices", "update", "tokens/s", "MFU", f"{best[0].steps} updates"]
    return [
        output.table(headings, rows),
        f"memory: on a device, of {size_of(device.memory_bytes)}; devices: the fewest that it fits on",
    ]


def size_of(num_bytes: float) -> str:
    """Return bytes in MiB or GiB."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def assumptions(device: "Device") -> str:
    """Return on one line what the prediction takes for granted."""
    from gq import predictions

    if device.measured:
        rate, float32 = device.bfloat16_flops / 1e9, device.float32_flops / 1e9
        shares = f"{100 * predictions.CPU_SHARE:.0f} % and {100 * predictions.CPU_BANDWIDTH_SHARE:.0f} %"
        return (
            f"measured here: {rate:.0f} GFLOP/s in bfloat16, {float32:.0f} in float32, "
            f"{device.bandwidth / 1e9:.0f} GB/s; assumed: {shares} of these"
        )
    return (
        f"assumed: {100 * predictions.GPU_SHARE:.0f} % of the peak of matrix products, "
        f"{100 * predictions.GPU_BANDWIDTH_SHARE:.0f} % of bandwidth, "
        f"{100 * predictions.LINK_SHARE:.0f} % of the link, "
        f"{1e6 * predictions.GPU_LAUNCH_S:.0f} us to start a kernel, no compiler"
    )

"""What `gq params --device` says: memory is what an instantiated model takes, time follows from the device's peak."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commandline import child_environment, document, gq
from gq import presets
from gq.config import DTConfig
from gq.costs.transformers import UTILISATION, DevicePlan, best_way, devices_needed, plan_training, ways_to_train
from gq.data.windows import WindowSampler
from gq.datasets.loading import load_dataset
from gq.devices import Device, device_here, known_devices, known_gpus, resolve_device
from gq.errors import UsageError
from gq.policies.compute import choose_compute
from gq.training.building import build_learner, choose_placement
from tiny import SETTINGS, write_hopper_file

# A rate that is easy to compute with: 1 TFLOP/s.
PLAIN = Device(name="plain", memory_bytes=10**11, bfloat16_flops=2e12, float32_flops=1e12)


def config_of(size: str, task: str = "Humanoid-v5", **settings: Any) -> DTConfig:
    return presets.dt(size).replace({"task": task, **settings})


def on(device: str, size: str = "1.9b", **options: Any) -> DevicePlan:
    return plan_training(config_of(size), known_gpus()[device], **options)


def nbytes(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("backbone", ["qwen3", "gpt2"])
def test_weights_gradients_moments_and_data_take_what_training_takes(backbone: str, tmp_path: Path) -> None:
    trajectories = load_dataset(str(write_hopper_file(tmp_path / "data.hdf5")))
    settings = SETTINGS | {"task": "Hopper-v5", "model.backbone": backbone, "model.num_kv_heads": 2}
    config = presets.dt("1m").replace(settings)
    placement = choose_placement(config, trajectories, choose_compute("cpu", "float32"))
    learner = build_learner(config, trajectories, placement)
    learner.update(0)
    parameters = list(learner.model.parameters())
    moments = [
        value for state in learner.optimizer.state.values() for key, value in state.items() if key.startswith("exp_avg")
    ]
    memory = plan_training(config, PLAIN, num_transitions=trajectories.num_transitions).memory
    assert memory.weights == nbytes(parameters)
    assert memory.gradients == nbytes(p.grad for p in parameters)
    assert memory.optimizer == nbytes(moments)
    assert isinstance(learner.sampler, WindowSampler)
    assert memory.data == nbytes(learner.sampler.rows)


def test_memory_in_all_counts_the_larger_of_what_training_and_evaluation_keep() -> None:
    memory = on("h100").memory
    parts = vars(memory)
    assert memory.total == sum(parts.values()) - memory.kv_cache
    starved = replace(memory, kv_cache=memory.activations + 5)
    assert starved.total == memory.total + 5


def test_shards_divide_weights_gradients_and_moments_but_not_activations() -> None:
    whole, shared = (on("h100", world_size=8, parallel=kind).memory for kind in ("replicated", "sharded"))
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(shared, part) == pytest.approx(getattr(whole, part) / 8, abs=1)
    assert shared.activations == whole.activations
    assert shared.total < whole.total


def test_a_batch_is_divided_among_devices_before_it_is_computed_in_parts() -> None:
    config = presets.dt("1.9b")  # eight parts of eight windows
    assert (config.train.batch_size, config.train.num_micro_batches) == (64, 8)
    alone, four, eight = (on("h100", world_size=number) for number in (1, 4, 8))
    assert [p.windows_per_device for p in (alone, four, eight)] == [8, 8, 8]
    assert [p.num_micro_batches for p in (alone, four, eight)] == [8, 2, 1]
    assert alone.memory.activations == eight.memory.activations
    assert alone.flops == eight.flops


def test_checkpointing_trades_activations_for_a_forward_pass() -> None:
    plain, checkpointed = on("h100"), on("h100", checkpointing=True)
    assert checkpointed.memory.activations < plain.memory.activations / 5
    assert checkpointed.update_seconds == pytest.approx(plain.update_seconds * 4 / 3, rel=0.02)
    assert checkpointed.flops == plain.flops, "what is computed again is no progress"


def test_time_is_the_arithmetic_at_the_stated_share_of_the_peak() -> None:
    config = config_of("0.1b", "Hopper-v5", **{"train.precision": "float32"})
    plan = plan_training(config, PLAIN)
    assert plan.utilisation == UTILISATION
    assert plan.update_seconds == pytest.approx(plan.flops / (UTILISATION * 1e12))
    assert plan.training_seconds == 4000 * plan.update_seconds
    assert plan_training(config, replace(PLAIN, float32_flops=2e12)).update_seconds == plan.update_seconds / 2
    assert plan_training(config, PLAIN, world_size=4).update_seconds == plan.update_seconds / 4


def test_without_bfloat16_arithmetic_float32_is_predicted() -> None:
    assert on("h100", "13m").bfloat16
    assert not on("t4", "13m").bfloat16
    assert on("t4", "13m").memory.activations > 1.3 * on("h100", "13m").memory.activations


def test_what_does_not_fit_one_device_fits_several() -> None:
    config = config_of("1.9b")
    assert not any(way.fits for way in ways_to_train(config, known_gpus()["l4"]))
    number = devices_needed(config, known_gpus()["l4"])
    assert number is not None
    assert number > 1
    best = best_way(ways_to_train(config, known_gpus()["l4"], world_size=number))
    assert best.fits
    assert best.parallel == "sharded"
    assert devices_needed(config, replace(PLAIN, memory_bytes=10**9)) is None


def test_the_plainest_way_is_taken_unless_another_is_faster() -> None:
    ways = ways_to_train(config_of("1m"), known_gpus()["h100"], world_size=8)
    assert len(ways) == 4
    assert (best_way(ways).parallel, best_way(ways).checkpoint_activations) == ("replicated", False)


def test_the_largest_model_trains_on_one_gpu_of_80_gigabytes() -> None:
    whole_batch = config_of("1.9b", **{"train.num_micro_batches": 1})
    plan = plan_training(whole_batch, known_gpus()["h100"])
    assert plan.fits
    assert plan.windows_per_device == 64


def test_devices_are_known_by_their_names_and_torch_s() -> None:
    names = {"a100-40", "a100-80", "h100", "h200", "b200", "l4", "rtx4090", "rtx3090", "t4", "cpu"}
    assert set(known_devices()) == names
    assert resolve_device("H100") is known_gpus()["h100"]
    assert device_here("NVIDIA H100 80GB HBM3") is known_gpus()["h100"]
    assert device_here("NVIDIA H100 PCIe") is None, "its peak is another"
    with pytest.raises(UsageError) as caught:
        resolve_device("a100")
    assert caught.value.hint == "did you mean a100-40 or a100-80?"


def test_memory_is_what_boards_report_in_gib_not_what_data_sheets_round_it_to() -> None:
    assert known_gpus()["h100"].memory_bytes == pytest.approx(79.1 * 2**30, rel=1e-3)
    assert known_gpus()["t4"].memory_bytes == pytest.approx(14.7 * 2**30, rel=1e-3)
    assert "of 79.10 GiB" in gq("params", "--device", "h100", "1m").stdout


def test_this_cpu_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gq.devices.PROBE_WIDTH", 64)
    device = resolve_device("cpu")
    assert device.measured
    assert min(device.float32_flops, device.bfloat16_flops) > 1e6
    plan = plan_training(config_of("1m", "Hopper-v5"), device)
    assert plan.memory.context == 0
    assert plan.update_seconds > 0


def test_the_command_shows_one_size_in_all_ways() -> None:
    printed = document("params", "--device", "h100", "--world-size", "8", "--size", "1.9b", "--batch-size", "128")
    assert (printed["task"], printed["world_size"], printed["device"]["name"]) == ("Humanoid-v5", 8, "h100")
    (model,) = printed["models"]
    ways = {(way["parallel"], way["checkpoint_activations"]) for way in model["ways"]}
    assert ways == {(kind, again) for kind in ("replicated", "sharded") for again in (False, True)}
    assert model["best"] in model["ways"]
    assert (model["best"]["batch_size"], model["best"]["windows_per_device"]) == (128, 16)
    assert model["best"]["parameters"] == 1_935_652_881
    shown = gq("params", "--device", "l4", "--world-size", "8", "--size", "1.9b").stdout
    for word in ("gradients", "activations", "fits", "--set train.parallel=sharded", "reach 40 % of"):
        assert word in shown
    assert "does not fit, it needs 8 devices" in gq("params", "1.9b", "--device", "l4").stdout


def test_the_command_shows_all_sizes_and_runs(tmp_path: Path) -> None:
    from gq.config import to_toml

    sizes = ["1m", "13m", "0.1b", "0.6b", "1.9b"]
    assert [model["size"] for model in document("params", "--device", "l4")["models"]] == sizes
    table = gq("params", "--device", "l4").stdout
    assert "1.9b: 64 windows in an update, 8 at once on a device; does not fit, it needs 8 devices" in table
    assert "0.1b: 64 windows" not in table, "what fits goes without saying"
    config = DTConfig(task="Hopper-v5").replace({"train.batch_size": 32, "train.steps": 10})
    (tmp_path / "config.toml").write_text(to_toml(config))
    (model,) = document("params", tmp_path, "--device", "t4")["models"]
    assert (model["best"]["batch_size"], model["best"]["steps"]) == (32, 10)
    num_bytes = gq("params", "13m", "--device", "t4", "-q").stdout
    assert int(num_bytes) > 10**9


def test_plans_need_no_torch() -> None:
    code = (
        "import sys; from gq import presets; from gq.devices import known_gpus;"
        "from gq.costs.transformers import plan_training; config = presets.dt('1m').replace({'task': 'Hopper-v5'});"
        "plan_training(config, known_gpus()['h100']); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["--device", "h10"], "unknown device h10", "did you mean h100?"),
        (["--world-size", "2"], "--world-size is a number of devices", "--device h100 --world-size 8"),
        (["--device", "h100", "--world-size", "0"], "--world-size is a number of devices", "--world-size 8"),
        (["tdmpc2", "--device", "h100"], "--device is for transformers", "without --device"),
        (["--size", "2b", "--device", "h100"], "--size is for gq params tdmpc2", "gq params 0.6b"),
    ],
)
def test_what_cannot_be_planned(arguments: list[str], message: str, hint: str) -> None:
    result = gq("params", *arguments)
    assert result.exit_code == 2
    error, advice = result.stderr.splitlines()
    assert message in error
    assert hint in advice

"""Rates are those of the time in which something was done, and stand in times.jsonl and on the screen."""

import json
from pathlib import Path

import pytest
import torch

from gq import presets
from gq.cli.output import Output
from gq.cli.training_view import TrainingView, rounded
from gq.learn import train
from gq.models.costs import training_flops
from gq.policies.compute import Compute, choose_compute
from gq.training import lifecycle
from gq.training.lifecycle import Throughput, UpdateCosts
from tiny import SETTINGS, write_hopper_file

CPU = choose_compute("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(lifecycle, "monotonic", lambda: now[0])
    return now


def test_rates_leave_out_evaluation_and_the_time_that_acting_takes(clock: list[float]) -> None:
    counter = Throughput(presets.dt("1m").replace({"task": "Hopper-v5", "train.batch_size": 10}), CPU)
    clock[0] += 2
    with counter.acting():
        clock[0] += 4
    with counter.apart():
        clock[0] += 30
    counter.num_updates, counter.num_environment_steps = 6, 200
    assert counter.rates() == {
        "updates_per_second": 3.0,
        "tokens_per_second": 3.0 * 10 * 60,
        "environment_steps_per_second": 50.0,
    }
    clock[0] += 1
    counter.num_updates = 1
    assert counter.rates()["updates_per_second"] == 1, "begins anew"


def test_who_acts_between_updates_is_measured_by_the_whole_time(clock: list[float]) -> None:
    counter = Throughput(presets.tdmpc2("1").replace({"task": "cartpole-swingup"}), CPU)
    clock[0] += 8
    counter.num_updates, counter.num_environment_steps = 4, 16
    assert counter.rates() == {"updates_per_second": 0.5, "environment_steps_per_second": 2.0}


def test_the_used_share_of_the_peak_is_known_with_the_peak(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    config = presets.dt("13m").replace({"task": "Hopper-v5", "train.batch_size": 4096, "train.precision": "bfloat16"})
    assert UpdateCosts.of(config, CPU).peak_flops == 0
    counter = Throughput(config, CPU)
    clock[0] += 1
    assert "mfu" not in counter.rates()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    costs = UpdateCosts.of(config, Compute(torch.device("cuda:0"), True, "as asked"))
    assert costs.peak_flops == 2 * 989.4e12
    flops = training_flops(config.model, observation_dim=11, action_dim=3, batch_size=4096)
    assert costs.flops == flops == pytest.approx(17e12, rel=0.1)
    counter.costs = costs
    clock[0] += 0.1
    counter.num_updates = 2
    assert counter.rates()["mfu"] == pytest.approx(20 * flops / (2 * 989.4e12))


def test_behaviour_cloning_counts_updates_only() -> None:
    assert UpdateCosts.of(presets.bc(), CPU) == UpdateCosts()


def test_a_run_keeps_its_rates_with_its_times(tmp_path: Path) -> None:
    data = write_hopper_file(tmp_path / "data.hdf5")
    config = presets.dt("1m").replace({"data.dataset": str(data), **SETTINGS})
    run = train(config, tmp_path / "run").run
    times = [json.loads(line) for line in (run / "times.jsonl").read_text().splitlines()]
    assert [line["step"] for line in times] == [5, 10]
    for line in times:
        assert line["tokens_per_second"] == pytest.approx(line["updates_per_second"] * 8 * 4 * 3, rel=1e-3)
        assert "mfu" not in line
    between = 5 / (times[1]["seconds"] - times[0]["seconds"])
    assert times[1]["updates_per_second"] >= 0.99 * between, "evaluation and saving are left out"
    assert "per_second" not in (run / "metrics.jsonl").read_text(), "so that the metrics repeat exactly"


def test_rates_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    view = TrainingView(Output(no_progress=True), presets.dt("1m"))
    rates = {"tokens_per_second": 38_412.0, "mfu": 0.412, "environment_steps_per_second": 812.0}
    metrics = {"loss": 0.5, "gradient_norm": 1.0, "progress_per_second": 10.0}
    view.progress(10, 10, metrics | rates)
    shown = capsys.readouterr().err
    assert "grad 1.00  38.4k tokens/s  41 % MFU  812 environment steps/s  0:00:00 left" in shown
    view.progress(10, 10, metrics)
    assert "812 environment steps/s" in capsys.readouterr().err, "the last time that it acted"


@pytest.mark.parametrize(
    ("number", "text"), [(0.1234, "0.123"), (812, "812"), (38_412, "38.4k"), (1.5e6, "1.5M"), (2e9, "2G")]
)
def test_numbers_are_rounded_to_three_digits(number: float, text: str) -> None:
    assert rounded(number) == text

"""Updates and plans replayed as graphs equal those that are not, to the bit, and are freed with their owner."""

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import replaying
from gq.algos import captured, dt
from gq.algos.captured import Captured, Program
from gq.algos.odt import ODTLearner
from gq.algos.supervised import Execution, SupervisedLearner
from gq.algos.tdmpc2 import TDMPC2Learner
from gq.config import EntropyConfig, OptimConfig, TrainConfig
from gq.data.windows import StreamingSampler, WindowSampler
from gq.errors import is_out_of_memory
from gq.models.config import ModelConfig, StochasticModelConfig
from gq.models.decision_transformer import DecisionTransformer
from gq.models.stochastic_transformer import StochasticTransformer
from gq.models.transformer import recompute
from gq.models.world_config import PlannerConfig
from gq.planning.mppi import Planner
from test_tdmpc2 import DISCOUNT, UPDATE, make_batch
from test_training_step import GPT2, QWEN3, make_data
from test_world_model import OBSERVATION_DIM, TINY, make_model

CAPTURED = Program(False, True, "test")
NUM_STEPS = 9


@pytest.fixture(autouse=True)
def graphs_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Captured, "capture", replaying.capture)
    monkeypatch.setattr(Captured, "warm_up", replaying.warm_up)
    torch.manual_seed(0)


def make_dt(
    model: ModelConfig = QWEN3, *, burst: int = 1, sampler: Any = WindowSampler, again: bool = False, **settings: Any
) -> SupervisedLearner:
    network = DecisionTransformer(model, observation_dim=6, action_dim=2)
    if again:
        recompute(network.backbone.blocks, is_random=model.dropout > 0)
    return SupervisedLearner(
        network,
        lambda model, batch: {"loss": dt.action_loss(model, batch)},
        sampler(make_data(), model.context_length),
        OptimConfig(learning_rate=3e-3, warmup_steps=5, optimizer=settings.pop("optimizer", "adamw")),
        TrainConfig(batch_size=16, steps=50, **settings),
        Execution(program=CAPTURED, burst=burst),
    )


def make_odt() -> ODTLearner:
    config = StochasticModelConfig(
        embed_dim=32, num_layers=2, num_heads=2, num_kv_heads=2, context_length=5, backbone="gpt2", dropout=0.1
    )
    return ODTLearner(
        StochasticTransformer(config, observation_dim=6, action_dim=2),
        WindowSampler(make_data(), 5),
        OptimConfig(optimizer="lamb", learning_rate=1e-3),
        TrainConfig(batch_size=16, steps=50),
        EntropyConfig(),
        Execution(program=CAPTURED),
    )


CASES: dict[str, Callable[[], SupervisedLearner]] = {
    "qwen3": make_dt,
    "gpt2 with dropout": lambda: make_dt(replace(GPT2, dropout=0.1)),
    "lamb": lambda: make_dt(optimizer="lamb"),
    "micro-batches": lambda: make_dt(num_micro_batches=3),
    "checkpointed activations": lambda: make_dt(again=True),
    "streamed": lambda: make_dt(sampler=StreamingSampler),
    "odt": make_odt,
}


def run(learner: SupervisedLearner, between: Callable[[int], None] = lambda step: None) -> dict[str, Any]:
    """Take updates; return everything that they changed."""
    losses = []
    for step in range(NUM_STEPS):
        losses.append(learner.update(step))
        between(step)
    return {"metrics": losses, "weights": learner.model.state_dict(), "state": learner.state_tensors()}


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def eagerly(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any], run: Callable[[Any], Any]) -> Any:
    """Return what `run` makes of what `make` makes if nothing is ever replayed."""
    with monkeypatch.context() as patch:
        patch.setattr(captured, "NUM_WARM_UPS", 10**9)
        torch.manual_seed(0)
        result = run(make())
    torch.manual_seed(0)
    return result


@pytest.mark.parametrize("case", CASES)
def test_replayed_updates_are_those_that_would_have_been_taken(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = eagerly(monkeypatch, CASES[case], run)
    learner = CASES[case]()
    assert_same(run(learner), expected)
    assert learner.captured
    (recording,) = learner.captured.recordings.values()
    assert recording.graph.num_replays == NUM_STEPS - captured.NUM_WARM_UPS  # type: ignore[attr-defined]
    assert len({float(each["loss"]) for each in expected["metrics"]}) == NUM_STEPS


def test_a_loaded_state_and_an_evaluation_come_between(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(learner: SupervisedLearner) -> dict[str, Any]:
        def between(step: int) -> None:
            if step == 5:
                learner.load_state_tensors({name: value.clone() for name, value in learner.state_tensors().items()})
            learner.model.eval()
            with torch.no_grad():
                learner.model(*WindowSampler(make_data(), 5, seed=step).sample(3)[:4])

        return run(learner, between)

    make = CASES["gpt2 with dropout"]
    expected = eagerly(monkeypatch, make, interrupted)
    learner = make()
    assert_same(interrupted(learner), expected)
    assert learner.captured
    assert not learner.captured.recordings, "after loading it warms up again"
    learner.update(NUM_STEPS)
    assert len(learner.captured.recordings) == 1


@pytest.mark.parametrize("case", [{}, {"optimizer": "lamb"}])
def test_a_burst_of_updates_equals_as_many_single_ones(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = eagerly(monkeypatch, lambda: make_dt(**case), lambda learner: [learner.update(i) for i in range(15)])
    learner, taken, step = make_dt(burst=4, **case), list[int](), 0
    while step < 15:
        metrics, num = learner.updates(step, 15 - step)
        for name, values in metrics.items():
            assert_same(values.reshape(-1), torch.stack([each[name] for each in expected[step : step + num]]))
        taken.append(num)
        step += num
    assert taken == [1, 1, 1, 4, 4, 4], "the first ones warm up"
    assert learner.updates(15, 3)[1] == 1, "never more than wanted"


def test_windows_from_outside_are_no_burst() -> None:
    learner = make_dt(burst=4, sampler=StreamingSampler)
    for step in range(4):
        learner.update(step)
    assert learner.updates(4, 100)[1] == 1


def world_learner() -> TDMPC2Learner:
    model = make_model(replace(TINY, dropout=0.1), episodic=True)
    return TDMPC2Learner(model, UPDATE, discount=DISCOUNT, autocast=nullcontext, program=CAPTURED)


def learn_world(learner: TDMPC2Learner) -> dict[str, Any]:
    metrics = [learner.update(make_batch(seed)) for seed in range(NUM_STEPS)]
    return {"metrics": metrics, "weights": learner.model.state_dict(), "state": learner.state_tensors()}


def test_replayed_updates_of_a_world_model_are_those_that_would_have_been_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = eagerly(monkeypatch, world_learner, learn_world)
    learner = world_learner()
    assert_same(learn_world(learner), expected)
    assert learner.captured
    (recording,) = learner.captured.recordings.values()
    assert recording.graph.num_replays == NUM_STEPS - captured.NUM_WARM_UPS  # type: ignore[attr-defined]


@pytest.mark.parametrize("program", [CAPTURED, captured.EAGER])
@pytest.mark.parametrize("spare", [0, 1])
def test_replayed_plans_are_those_that_would_have_been_made(
    program: Program, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # as on a GPU: on a CPU, the host chooses heads
    model = make_model(episodic=True).eval()
    planner = Planner(model, PlannerConfig(num_samples=16, num_policy_samples=4, num_elites=4), discount=0.9)
    other = Planner(model, planner.config, discount=0.9, program=program)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(3)]
    copies = [torch.Generator().manual_seed(seed) for seed in range(3)]
    warm = mine = torch.zeros(3, 3, model.action_dim)
    for step in range(6):
        observations = torch.randn(3, OBSERVATION_DIM)
        with torch.no_grad():
            plan = planner.plan(model.encode(observations), planner.draw_each(seeds), warm)
        given: list[torch.Generator | None] = [*copies[: 3 - spare], *[None] * spare]
        found = other.plan_each(observations, given, mine, encoded=False)
        used = slice(0, 3 - spare)
        assert_same([part[used] for part in found], [part[used] for part in plan])
        warm = mine = plan.mean
        assert step < 3 or program is not CAPTURED or other.graphs[(3, OBSERVATION_DIM, 0, 0)][0].is_warm


@pytest.mark.parametrize("make", [make_dt, make_odt, world_learner])
def test_a_learner_is_freed_without_the_garbage_collector(make: Callable[[], Any]) -> None:
    learner = make()
    learn_world(learner) if isinstance(learner, TDMPC2Learner) else run(learner)
    gone = weakref.ref(learner)
    gc.collect()
    gc.disable()
    try:
        del learner
        assert gone() is None
    finally:
        gc.enable()


def test_an_update_that_waits_for_the_device_is_noticed() -> None:
    def wait(rate: Tensor) -> dict[str, Tensor]:
        return {"loss": rate * float(rate)}

    updates = Captured(torch.device("cpu"))
    for _ in range(captured.NUM_WARM_UPS):
        updates(wait, torch.ones(()))
    with pytest.raises(AssertionError, match="answers on the host"):
        updates(wait, torch.ones(()))


def test_memory_that_ends_during_a_capture_is_said_to_have_ended() -> None:
    error = RuntimeError("operation failed due to a previous error during capture")
    error.__context__ = torch.OutOfMemoryError("CUDA out of memory")
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("operation failed due to a previous error during capture"))

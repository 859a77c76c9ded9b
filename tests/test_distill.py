"""Correctors learn from the planner: the loss, training, rounds in closed loop, what is kept and what is refused."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from breaking import forked
from commandline import copy_run, gq
from gq.envs.tasks import resolve_task
from gq.errors import DataError, Interrupted, UsageError
from gq.files import sha256
from gq.models.corrector import ARCHITECTURES, Architecture, Corrector, CorrectorConfig, CorrectorInputs
from gq.planning.acting import PlanningPolicy
from gq.policies.correctors import load_corrector
from gq.policies.loading import Acting, load_run
from gq.rollouts.collect import episode_start
from gq.speculation.distil import distill
from gq.speculation.drivers import PlannerDriver, StudentDriver, Teacher, collect_episode
from gq.speculation.rounds import DistillSettings, prepare
from gq.speculation.samples import Batch, PlanEpisode, Samples, build_samples, read_plan_data, write_plan_data
from gq.speculation.training import (
    CorrectorLearner,
    TrainSettings,
    ValueGap,
    action_errors,
    corrector_loss,
    measure,
    train_corrector,
    value_scale,
)
from simulator import make
from test_corrector import LATENT, make_corrector, make_inputs
from test_plan_data import ACTION, make_episode, make_teacher
from test_world_runs import trained
from tiny import as_flags

pytestmark = [pytest.mark.computes, pytest.mark.usefixtures("one_thread")]

TINY = DistillSettings(
    archs=ARCHITECTURES,
    rounds=1,
    num_episodes=4,
    history_length=3,
    execution_horizon=5,
    train=TrainSettings(num_epochs=2, seed=5),
)


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A barely trained teacher with one action, whose episodes last a few decisions."""
    return trained(tmp_path_factory.mktemp("pendulum"), "InvertedPendulum-v5")


@pytest.fixture(scope="module")
def distilled(pendulum: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a whole distillation left behind."""
    out = tmp_path_factory.mktemp("distilled")
    distill(pendulum, TINY, out=out)
    return out


# --- the loss ---------------------------------------------------------------------------------------------------------


def make_batch(num: int = 5, action_dim: int = ACTION, std: float = 0.05) -> Batch:
    inputs = make_inputs(num, action_dim)
    return Batch(inputs, inputs.plan_action * 0.5, torch.full_like(inputs.plan_action, std))


@pytest.mark.parametrize("action_dim", [1, 2])
def test_shapes_that_would_be_broadcast_are_refused(action_dim: int) -> None:
    batch = make_batch(action_dim=action_dim)
    assert action_errors(batch.label, batch).tolist() == [0] * 5
    with pytest.raises(AssertionError):
        action_errors(batch.label[:, 0], batch)
    with pytest.raises(AssertionError):
        action_errors(batch.label, batch._replace(label=batch.label[:, 0]))


def test_errors_are_huber_and_count_less_where_the_teacher_is_unsure() -> None:
    batch = make_batch(num=3, action_dim=1)._replace(label=torch.zeros(3, 1))
    small, large, unsure = action_errors(torch.tensor([[0.02], [0.5], [0.5]]), batch).tolist()
    assert small == pytest.approx(0.02**2 / 2 / 0.1)
    assert large == pytest.approx(0.5 - 0.05)
    unsure = float(action_errors(torch.full((3, 1), 0.5), batch._replace(label_std=torch.full((3, 1), 0.5)))[0])
    assert unsure == pytest.approx(large / 10)


def test_the_value_term_pulls_to_actions_that_the_teacher_values(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = make_teacher().requires_grad_(False)

    def q_values(latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return 3 * actions[:, 0] * torch.ones(2, 1) + 0 * latents[:, 0]

    monkeypatch.setattr(teacher, "q_values", q_values)
    batch = make_batch()
    actions = batch.label.clone().requires_grad_()
    gap = ValueGap(teacher, 6.0)
    lost = gap(batch.inputs.real, actions - 0.2, batch.label)
    assert lost.tolist() == pytest.approx([0.1] * 5)
    lost.sum().backward()
    assert actions.grad is not None
    assert actions.grad[:, 0].tolist() == pytest.approx([-0.5] * 5)
    assert actions.grad[:, 1].tolist() == [0] * 5
    corrector = make_corrector("two-tower", is_fresh=True)
    without = corrector_loss(corrector, batch)
    terms = corrector_loss(corrector, batch, value_gap=gap, value_weight=2.0)
    assert torch.equal(terms.action, without.loss.detach())
    torch.testing.assert_close(terms.loss.detach(), terms.action + 2 * terms.value)
    assert value_scale(teacher, batch.inputs.real, torch.linspace(-1, 1, 5)[:, None].expand(-1, 2)) == pytest.approx(
        5.4, abs=1e-5
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_updates_change_every_parameter_and_not_the_teacher(arch: Architecture) -> None:
    teacher = make_teacher().requires_grad_(False)
    corrector = make_corrector(arch, is_fresh=True)
    before = {name: parameter.clone() for name, parameter in corrector.named_parameters()}
    weights = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    learner = CorrectorLearner(corrector, TrainSettings(value_weight=0.1), ValueGap(teacher, 1.0))
    for _ in range(3):  # the first changes the last layer alone, which was zero
        learner.update(make_batch())
    for name, parameter in corrector.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    assert all(torch.equal(tensor, weights[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("action_dim", [1, 2])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_64_samples_are_overfitted(arch: Architecture, action_dim: int) -> None:
    inputs = make_inputs(64, action_dim, seed=3)
    label = torch.rand(64, action_dim, generator=torch.Generator().manual_seed(9)) * 2 - 1
    batch = Batch(inputs, label, torch.full_like(label, 0.05))
    corrector = make_corrector(arch, action_dim=action_dim, is_fresh=True, hidden_dim=64)
    corrector.scale_inputs(inputs.real, inputs.predicted)
    corrector.bound_residual(label - inputs.plan_action)
    learner = CorrectorLearner(corrector, TrainSettings(learning_rate=3e-3, weight_decay=0))
    first = float(learner.loss(batch).loss)
    for _ in range(250):
        learner.update(batch)
    assert first > 0.3
    assert float(learner.loss(batch).loss) < 0.005 * first
    assert (corrector(inputs) - label).abs().max() < 0.1


# --- training ---------------------------------------------------------------------------------------------------------


def learnable(num_episodes: int = 6, length: int = 40) -> Samples:
    """Return samples whose right correction depends on the latent and its prediction."""
    episodes = []
    for number in range(num_episodes):
        episode = make_episode(number, length, round_number=1, execution_horizon=4)
        label = (0.5 * episode.queued + 0.4 * (episode.latents - episode.predicted)[:, :ACTION]).clip(-1, 1)
        episodes.append(replace(episode, label=label, plan_std=np.full_like(episode.plan_std, 0.05)))
    return build_samples(episodes, make_teacher(), execution_horizon=4)


CONFIG = CorrectorConfig(latent_dim=LATENT, action_dim=ACTION, hidden_dim=32, history_length=2, max_age=3)


def test_training_beats_the_plan_and_keeps_the_best_epoch() -> None:
    samples = learnable()
    settings = TrainSettings(num_epochs=25, patience=25, batch_size=32, learning_rate=3e-3)
    trained = train_corrector(samples, make_teacher(), CONFIG, settings)
    assert trained is not None
    losses = [entry["validation_loss"] for entry in trained.history]
    assert trained.best_epoch == int(np.argmin(losses)) > 0
    errors = measure(trained.corrector, samples, make_teacher())
    assert list(errors) == ["all", "1", "2", "3"]
    assert errors["all"]["samples"] == int(samples.is_validation.sum()) == 30
    assert sum(errors[age]["samples"] for age in "123") == 30
    for entry in errors.values():
        assert entry["corrected"]["rmse"] < 0.7 * entry["plan"]["rmse"]
    assert errors["all"]["corrected"]["huber"] == pytest.approx(min(losses), rel=1e-4)


def test_training_ends_once_other_episodes_get_no_better_and_begins_no_worse_than_the_plan() -> None:
    samples = learnable()
    rows = torch.from_numpy(np.flatnonzero(samples.is_validation))
    samples.states.label[samples.uses.state[rows]] = samples.uses.plan_action[rows]  # nothing is to be corrected there
    trained = train_corrector(samples, make_teacher(), CONFIG, TrainSettings(num_epochs=50, patience=3))
    assert trained is not None
    assert trained.best_epoch == 0
    assert len(trained.history) == 1 + 3
    assert measure(trained.corrector, samples, make_teacher())["all"]["corrected"]["rmse"] == 0


def test_training_repeats_to_the_bit_and_leaves_the_random_numbers_alone() -> None:
    samples, settings = learnable(3, 20), TrainSettings(num_epochs=2, seed=4)
    config = replace(CONFIG, arch="temporal", dropout=0.2)
    torch.manual_seed(77)
    state = torch.random.get_rng_state()
    first, again, other = (
        train_corrector(samples, make_teacher_quietly(), config, chosen)
        for chosen in (settings, settings, replace(settings, seed=5))
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.history == again.history != other.history


def make_teacher_quietly() -> Any:
    with torch.random.fork_rng():
        return make_teacher()


def test_too_few_episodes_are_refused() -> None:
    samples = build_samples([make_episode(0, 5)], make_teacher(), execution_horizon=3)
    with pytest.raises(DataError, match="0 samples to learn from"):
        train_corrector(samples, make_teacher(), CONFIG, TrainSettings())


# --- collecting -------------------------------------------------------------------------------------------------------


def never(done: int) -> bool:
    return done < 0


def collected(job: Any, driver: Any, number: int, *, num_plans: int = 3) -> PlanEpisode:
    teacher = Teacher(job.planner, num_plans)
    episode = collect_episode(teacher, driver, job.task, seed=7, number=number, round_number=0, stepped=never)
    assert episode is not None
    return episode


def test_where_the_planner_drives_episodes_are_those_of_an_evaluation_to_the_bit(pendulum: Path) -> None:
    job = prepare(pendulum, Acting(device="cpu"), TINY)
    episode = collected(job, PlannerDriver(), 2)
    policy = load_run(pendulum, Acting(mode="plan", device="cpu")).policy
    start, _ = episode_start(7, 2)
    assert episode.seed == start
    environment = make("InvertedPendulum-v5")
    observation, _ = environment.reset(seed=start)
    policy.reset(np.zeros(1), [start])
    for step in range(episode.num_decisions):
        assert np.array_equal(episode.observations[step], observation.astype(np.float32))
        (action,) = policy.act(np.array([0]), observation[None].astype(np.float32))
        assert np.array_equal(episode.actions[step] * 3, action)
        assert np.array_equal(episode.plan_mean[step, 0], episode.actions[step])
        observation, reward, terminated, truncated, _ = environment.step(action)
        assert episode.rewards[step] == np.float32(reward)
    assert terminated or truncated
    alone = collected(job, PlannerDriver(), 2, num_plans=1)
    assert np.array_equal(alone.actions, episode.actions), "labels change nothing"
    assert np.array_equal(alone.label, alone.plan_mean[:, 0])
    assert not alone.label_std.any()


def test_labels_are_means_over_plans_and_vary_less_than_drawn_elites(pendulum: Path) -> None:
    job = prepare(pendulum, Acting(device="cpu"), TINY)
    episode = collected(job, PlannerDriver(), 0, num_plans=8)
    assert (episode.label_std > 0).all()
    assert np.sqrt((episode.label_std**2).mean() / 8) < 0.5 * np.sqrt((episode.elite_std**2).mean())
    assert (abs(episode.label - episode.plan_mean[:, 0]) <= np.sqrt(7) * episode.label_std + 1e-6).all()


class Witness:
    """A corrector that keeps all that it was asked."""

    def __init__(self, corrector: Corrector) -> None:
        self.corrector, self.asked = corrector, list[CorrectorInputs]()
        self.history_length = corrector.history_length

    def __call__(self, inputs: CorrectorInputs) -> torch.Tensor:
        self.asked.append(inputs)
        return self.corrector(inputs)


@pytest.mark.parametrize(("execution_horizon", "plan_horizon"), [(2, 3), (6, 3), (6, 2), (4, 5)])
def test_what_is_learnt_from_is_what_was_seen_when_acting(
    pendulum: Path, execution_horizon: int, plan_horizon: int
) -> None:
    settings = replace(TINY, execution_horizon=execution_horizon, plan_horizon=plan_horizon)
    job = prepare(pendulum, Acting(device="cpu"), settings)
    corrector = make_corrector("temporal", action_dim=1, latent_dim=job.model.config.latent_dim, history_length=3)
    driver = StudentDriver(job.planner, corrector, "temporal", execution_horizon=execution_horizon, task=job.task)
    witness = Witness(corrector)
    driver.recorder.corrector = witness  # type: ignore[assignment]
    episode = collected(job, driver, 1)
    steps = np.flatnonzero(episode.ages)
    assert episode.ages.tolist() == [step % execution_horizon for step in range(episode.num_decisions)]
    assert len(witness.asked) == len(steps) > 2
    samples = build_samples([episode], job.model, execution_horizon=execution_horizon)
    built = samples.batch(np.arange(len(steps)), 3).inputs
    for name, part in built._asdict().items():
        seen = torch.cat([getattr(inputs, name) for inputs in witness.asked])
        assert seen.shape == part.shape, name
        torch.testing.assert_close(part, seen, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    acted = torch.from_numpy(episode.actions[steps])
    torch.testing.assert_close(corrector(built), acted, rtol=1e-3, atol=1e-4)
    new = episode.ages == 0
    assert np.array_equal(episode.predicted[new], episode.latents[new])
    assert np.array_equal(episode.queued[new], episode.actions[new])


def test_plans_that_a_student_executes_are_looked_up_as_a_planners_would_be(pendulum: Path) -> None:
    """Where nothing is corrected, a student's samples are the planner's: the plan it made, at every age."""
    job = prepare(pendulum, Acting(device="cpu"), replace(TINY, execution_horizon=6))
    fresh = make_corrector("two-tower", action_dim=1, latent_dim=16, history_length=3, is_fresh=True)
    driver = StudentDriver(job.planner, fresh, "two-tower", execution_horizon=6, task=job.task)
    episode = collected(job, driver, 1)
    planned = episode.plan_mean.copy()  # the student's plans, as far as they were executed, in place of the labels'
    for step in np.flatnonzero(episode.ages == 0):
        rest = episode.queued[step : step + 3]
        planned[step, : len(rest)] = rest
    assert episode.num_decisions > 4
    pretended = replace(episode, driver="planner", plan_mean=planned)
    mine, theirs = (build_samples([each], job.model, execution_horizon=6) for each in (episode, pretended))
    keys = list(zip(theirs.uses.state.tolist(), theirs.uses.age.tolist(), strict=True))
    for row, state in enumerate(mine.uses.state.tolist()):
        other = keys.index((state, int(mine.uses.age[row])))
        for name in ("predicted", "plan_action"):
            torch.testing.assert_close(
                getattr(mine.uses, name)[row], getattr(theirs.uses, name)[other], rtol=1e-4, atol=1e-5
            )


# --- whole distillations ----------------------------------------------------------------------------------------------


def test_a_distillation_leaves_data_of_all_rounds_and_both_correctors(pendulum: Path, distilled: Path) -> None:
    digest = sha256(load_run(pendulum, Acting(device="cpu")).checkpoint / "model.safetensors")
    data = read_plan_data(distilled / "decisions.hdf5", teacher_sha256=digest)
    assert [episode.round for episode in data.episodes] == [0] * 4 + [1] * 4
    assert [episode.driver for episode in data.episodes[3:]] == ["planner", *ARCHITECTURES, *ARCHITECTURES]
    longest = [int(episode.ages.max()) for episode in data.episodes[4:]]
    assert all(age < 5 for age in longest[:2])
    assert all(age < 2 for age in longest[2:])
    assert not list(distilled.glob(".*.parts"))
    for arch in ARCHITECTURES:
        loaded = load_corrector(distilled / arch, digest)
        assert loaded.corrector.config.arch == arch
        assert loaded.corrector.config.max_age == 4
        assert loaded.document["data_sha256"] == sha256(distilled / "decisions.hdf5")
        assert loaded.document["settings"]["train"]["seed"] == 5
        metrics = loaded.document["metrics"]
        assert len(metrics["history"]) == 3
        assert {"corrected", "plan", "policy", "samples"} == set(metrics["errors"]["all"])
        policy = PlanningPolicy(
            load_run(pendulum, Acting(device="cpu")).policy.planner,  # type: ignore[attr-defined]
            task=resolve_task("InvertedPendulum-v5"),
            mode="spec3",
            corrector=loaded.corrector,
        )
        policy.reset(np.zeros(2), [1, 2])
        for _ in range(4):
            actions = policy.act(np.arange(2), np.zeros((2, 4), np.float32))
        assert actions.shape == (2, 1)
        assert np.isfinite(actions).all()


def test_data_are_reused_with_the_same_result_and_not_collected_again(
    pendulum: Path, distilled: Path, tmp_path: Path
) -> None:
    content = (distilled / "decisions.hdf5").read_bytes()
    notes: list[str] = []
    again = distill(pendulum, TINY, out=distilled, note=notes.append)
    assert any("is there already" in note for note in notes)
    reused = distill(pendulum, TINY, data=distilled / "decisions.hdf5", out=tmp_path)
    assert (distilled / "decisions.hdf5").read_bytes() == content
    assert not (tmp_path / "decisions.hdf5").exists()
    assert [made.errors for made in reused.correctors] == [made.errors for made in again.correctors]
    weights = [(folder / "temporal" / "model.safetensors").read_bytes() for folder in (distilled, tmp_path)]
    assert weights[0] == weights[1]
    with pytest.raises(UsageError, match="collected with other settings"):
        distill(pendulum, replace(TINY, num_episodes=3), out=distilled)
    with pytest.raises(UsageError, match="holds plans of 3 decisions, not 2"):
        distill(pendulum, replace(TINY, plan_horizon=2), data=distilled / "decisions.hdf5", out=tmp_path)


def test_ablations_have_names_of_their_own_and_nothing_is_replaced_unasked(
    pendulum: Path, distilled: Path, tmp_path: Path
) -> None:
    data, alone = distilled / "decisions.hdf5", replace(TINY, archs=("two-tower",))
    settings = [alone, replace(alone, plan_blind=True), replace(alone, use_age=False), replace(alone, target="elite")]
    folders = [distill(pendulum, each, data=data, out=tmp_path).correctors[0].folder for each in settings]
    names = ["two-tower", "two-tower-plan-blind", "two-tower-no-age", "two-tower-elite"]
    assert [folder.name for folder in folders] == names
    assert len({sha256(folder / "model.safetensors") for folder in folders}) == 4
    first, longer = sha256(folders[0] / "model.safetensors"), replace(alone, train=replace(TINY.train, num_epochs=3))
    with pytest.raises(UsageError, match=r"two-tower was distilled in another way") as refused:
        distill(pendulum, longer, data=data, out=tmp_path)
    assert "--force" in str(refused.value.hint)
    with pytest.raises(UsageError, match="in another way"):  # the data that it would collect are others
        distill(pendulum, alone, out=tmp_path)
    assert sha256(folders[0] / "model.safetensors") == first
    assert not (tmp_path / "decisions.hdf5").exists()
    distill(pendulum, alone, data=data, out=tmp_path)
    assert sha256(folders[0] / "model.safetensors") == first, "the same again is no change"
    distill(pendulum, longer, data=data, out=tmp_path, force=True)
    assert sha256(folders[0] / "model.safetensors") != first


def test_another_teachers_data_are_refused(pendulum: Path, distilled: Path, tmp_path: Path) -> None:
    data = read_plan_data(distilled / "decisions.hdf5")
    other = tmp_path / "other.hdf5"
    write_plan_data(other, data.episodes, data.attributes | {"teacher_sha256": "0" * 64})
    with pytest.raises(UsageError, match="another teacher: 000000000000, not"):
        distill(pendulum, TINY, data=other, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_number_of_samples_can_be_limited(pendulum: Path, tmp_path: Path) -> None:
    settings = replace(TINY, archs=("two-tower",), max_samples=30, num_episodes=20)
    made = distill(pendulum, settings, out=tmp_path)
    (corrector,) = made.correctors
    assert corrector.samples + corrector.validation_samples == 30
    assert 4 <= made.episodes < 12, "no more is collected than is needed"


def stop_at(round_number: int, then: Callable[[], None]) -> Callable[[str, int, int | None], None]:
    """Return what runs `then` within the third episode of a round."""

    def progress(what: str, done: int, total: int | None) -> None:
        if what == f"round {round_number}" and total and done > total / 2:
            then()

    return progress


@pytest.mark.parametrize("round_number", [0, 1])
def test_a_signal_changes_no_byte(pendulum: Path, distilled: Path, tmp_path: Path, round_number: int) -> None:
    progress = stop_at(round_number, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match=f"{2 + 4 * round_number} finished episodes are kept"):
        distill(pendulum, TINY, out=tmp_path, progress=progress)
    with pytest.raises(UsageError, match="was begun with"):
        distill(pendulum, replace(TINY, num_episodes=3), out=tmp_path)
    notes: list[str] = []
    distill(pendulum, TINY, out=tmp_path, note=notes.append)
    assert "resuming with what is in" in notes[0]
    assert (tmp_path / "decisions.hdf5").read_bytes() == (distilled / "decisions.hdf5").read_bytes()
    assert (tmp_path / "two-tower/model.safetensors").read_bytes() == (
        distilled / "two-tower/model.safetensors"
    ).read_bytes()


def test_a_kill_changes_no_byte(pendulum: Path, distilled: Path, tmp_path: Path) -> None:
    progress = stop_at(1, lambda: os.kill(os.getpid(), signal.SIGKILL))
    process = forked(lambda: distill(pendulum, TINY, out=tmp_path, progress=progress))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".decisions.hdf5.parts/episode-*"))) == 6
    distill(pendulum, TINY, out=tmp_path)
    assert (tmp_path / "decisions.hdf5").read_bytes() == (distilled / "decisions.hdf5").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": -1}, "rounds = -1: input should be greater than or equal to 0"),
        ({"num_episodes": 1}, "num_episodes = 1: input should be greater than or equal to 2"),
        ({"execution_horizon": 1}, "execution_horizon = 1"),
        ({"history_length": 0}, "history_length = 0"),
        ({"min_distance": float("nan")}, "min_distance = nan"),
        ({"max_samples": 1}, "max_samples = 1"),
        ({"train": TrainSettings(num_epochs=0)}, "train.num_epochs = 0"),
        ({"train": TrainSettings(seed=-1)}, "train.seed = -1"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_made(
    pendulum: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        distill(pendulum, replace(TINY, **change), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_errors_by_age_and_draws_losses(pendulum: Path, tmp_path: Path) -> None:
    run = copy_run(pendulum, tmp_path / "agent")
    options = ["--rounds", "0", "--episodes", "4", "--device", "cpu"]
    options += as_flags({"train.num_epochs": 1, "execution_horizon": 3, "history_length": 2})
    result = gq("distill", run, *options, "--arch", "temporal", "--json")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    (corrector,) = printed["correctors"]
    assert corrector["folder"] == str(run / "correctors" / "temporal")
    assert set(corrector["errors"]) == {"all", "1", "2"}
    assert printed["label_std"] < printed["elite_std"]
    folder = run / "correctors" / "temporal"
    assert {file.name for file in folder.iterdir()} >= {"model.safetensors", "corrector.json"}
    assert (folder / "losses.png").stat().st_size > 5000
    table = gq("distill", run, *options, "--arch", "temporal")
    assert "is there already" in table.stderr
    assert [line.split()[:2] for line in table.stdout.splitlines() if line.startswith("temporal")] == [
        ["temporal", age] for age in ("all", "1", "2")
    ]
    quiet = gq("distill", run, *options, "--data", run / "correctors" / "decisions.hdf5", "-q")
    assert quiet.stdout == f"{run / 'correctors' / 'two-tower'}\n"


def test_the_command_refuses_what_it_does_not_know(pendulum: Path) -> None:
    for options, message in [
        (["--arch", "three-tower"], "'three-tower' is not one of 'two-tower', 'temporal', 'both'"),
        (["--set", "target=median"], "target = 'median': input should be 'mean' or 'elite'"),
        (["--set", "plan-blind=true"], "there is no setting plan-blind"),
        (["--set", "plan_blind=2"], "plan_blind = 2: input should be a valid boolean"),
        (["--data", "nowhere.hdf5"], "there is no file nowhere.hdf5"),
    ]:
        result = gq("distill", pendulum, *options)
        assert result.exit_code == 2
        assert message in result.stderr

"""Suites: which runs there are, what each needs next, what their table says, and that a folder holds one suite."""

from dataclasses import replace
from pathlib import Path

import pytest

from commandline import document, gq
from gq import presets
from gq.benchmark import running
from gq.benchmark.benchmark import Request, cost, held, settle
from gq.benchmark.page import html
from gq.benchmark.results import Measured, Results, gather, markdown, summarise
from gq.benchmark.running import next_command, run_cells
from gq.benchmark.suites import SUITES, Method, Suite, cells, choose, train_words
from gq.datasets.names import resolve
from gq.errors import GqError, Interrupted, UsageError
from gq.results.history import History, method_of, read_settings
from measured import write_run
from tiny import write_hopper_file

TINY = Suite(
    "tiny",
    ("data",),
    (Method("bc-10", ("bc", "--set", "model.embed_dim=8", "--set", "eval.num_episodes=1"), 4, 0.1),),
    evaluations=2,
)


def measured(
    seed: int, last: float, best: float, maximum: float, *, method: str = "dt", dataset: str = "d"
) -> Measured:
    returns = {"last": last, "best": best, "maximum": maximum}
    scores = {way: value / 10 for way, value in returns.items()}
    return Measured(f"runs/{dataset}/{method}/seed-{seed}", dataset, method, seed, returns, scores, 10.0, 100, "ab")


def test_a_suite_is_every_method_on_every_dataset_one_seed_after_the_other() -> None:
    found = cells(SUITES["builtin"], (0, 1))
    assert len(found) == 2 * 9 * 7
    assert [cell.seed for cell in found] == [0] * 63 + [1] * 63
    assert found[0].place == "runs/builtin-hopper-medium-replay/bc-10/seed-0"
    assert len({cell.place for cell in found}) == len(found)


def test_all_suites_name_datasets_and_settings_that_exist() -> None:
    for suite in SUITES.values():
        assert [resolve(name).id for name in suite.datasets] == list(suite.datasets)
    for method in SUITES["builtin"].methods:
        result = gq("train", *method.command, "--task", "Hopper-v5", "--dataset", "nothing.hdf5", "--dry-run")
        assert "there is no dataset file nothing.hdf5" in result.stderr, result.stderr


def test_parts_of_a_suite_are_chosen_by_name() -> None:
    part = choose("builtin", datasets=["medium-replay"], only=["rebrac", "bc-10"], updates=50)
    assert [dataset.split("/")[1] for dataset in part.datasets] == ["hopper", "halfcheetah", "walker2d"]
    assert [(method.name, method.updates) for method in part.methods] == [("bc-10", 50), ("rebrac", 50)]
    for arguments, message in (
        ({"name": "bultin"}, "no suite bultin"),
        ({"name": "builtin", "datasets": ["ant"]}, "no dataset ant"),
        ({"name": "builtin", "only": ["iql"]}, "no method iql"),
    ):
        with pytest.raises(UsageError, match=message):
            choose(**arguments)  # type: ignore[arg-type]


def test_what_a_run_is_trained_with_is_in_its_command() -> None:
    (cell,) = cells(TINY, (3,))
    assert train_words(cell, TINY)[:2] == ["train", "bc"]
    assert train_words(cell, TINY)[-10:] == [
        *("--dataset", "data", "--seed", "3", "--steps", "4"),
        *("--set", "eval.every=2", "--set", "checkpoint.every=2"),
    ]


@pytest.mark.usefixtures("fast_disk")
def test_a_run_is_trained_resumed_and_evaluated_until_nothing_is_left(tmp_path: Path) -> None:
    data = write_hopper_file(tmp_path / "data.hdf5")
    suite = replace(TINY, datasets=(str(data),))
    (cell,) = cells(suite, (0,))
    cell = replace(cell, dataset=str(data))
    words = next_command(tmp_path, cell, suite, 2)
    assert words
    assert "--resume" not in words
    words[words.index("--steps") + 1] = "2"  # not all of it
    assert gq(*words).exit_code == 0
    done = []
    while (words := next_command(tmp_path, cell, suite, 2)) is not None:
        done.append(words)
        result = gq(*words)
        assert result.exit_code == 0, result.stderr
    assert "--resume" in done[0]
    assert [words[3] for words in done[1:]] in (["last"], ["last", "best"])
    assert next_command(tmp_path, cell, suite, 3), "more episodes are asked for"
    results = gather(tmp_path, suite, [cell], command="gq", failed={})
    (found,) = results.runs
    assert found.returns["maximum"] >= 0
    assert set(found.returns) == {"last", "best", "maximum"}
    assert found.parameters > 0
    assert len(found.dataset_sha256) == 64
    assert cost(Request(replace(suite, datasets=("builtin/hopper/medium",)), (0,)), tmp_path).updates == 4


def test_a_run_that_fails_is_named_and_a_signal_ends_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = cells(replace(TINY, datasets=("nothing.hdf5",)), (0,))
    outcome = run_cells(tmp_path, found, TINY, num_jobs=2, num_episodes=1, say=lambda text: None)
    ((place, reason),) = outcome.failed.items()
    assert place == found[0].place
    assert "there is no dataset file nothing.hdf5" in reason

    class Patient:
        returncode = None

        def __init__(self, *_: object, **__: object) -> None:
            running.signal.raise_signal(running.signal.SIGTERM)

        def poll(self) -> int | None:
            return self.returncode

        def terminate(self) -> None:
            self.returncode = 130

        def wait(self) -> None:
            assert self.returncode == 130

    monkeypatch.setattr(running.subprocess, "Popen", Patient)
    with pytest.raises(Interrupted, match="SIGTERM"):
        run_cells(tmp_path, found, TINY, num_jobs=1, num_episodes=1, say=lambda text: None)


def test_the_three_numbers_of_the_same_runs_stand_side_by_side() -> None:
    runs = [measured(0, 100, 150, 300), measured(1, 200, 250, 400), measured(2, 300, 350, 500)]
    row = summarise(runs)
    assert row.returns == {"last": 200, "best": 250, "maximum": 400}
    assert row.selection == 200
    assert row.iqm["last"] == pytest.approx(200, abs=1)
    ends = row.intervals["last"]
    assert ends is not None
    assert ends[0] == pytest.approx(200 - 4.3027 * 100 / 3**0.5, rel=1e-3)
    results = Results("tiny", "gq benchmark tiny", runs, [row])
    assert "| d | dt | 3 | 200 [" in markdown(results)
    page = html(results)
    assert "<svg" in page
    assert "gq benchmark tiny" in page
    assert html(Results("tiny", "<script>", [], [])).count("<script>") == 0


def test_a_folder_holds_one_suite(tmp_path: Path) -> None:
    request = Request(TINY, (0,), 5)
    settle(request, tmp_path)
    settle(replace(request, seeds=(0, 1)), tmp_path)
    longer = replace(TINY, methods=(replace(TINY.methods[0], updates=9),))
    with pytest.raises(UsageError, match="other methods or numbers of updates"):
        settle(replace(request, suite=longer), tmp_path)
    more = replace(TINY, methods=(replace(TINY.methods[0], name="dt", updates=9),))
    settle(replace(request, suite=more), tmp_path)  # other methods may join


def test_one_process_at_a_time_runs_a_suite(tmp_path: Path) -> None:
    with held(tmp_path), pytest.raises(GqError, match="another process runs the suite"), held(tmp_path):
        pass


def test_the_command_says_what_is_left_and_what_it_costs(tmp_path: Path) -> None:
    words = ("benchmark", "builtin", "--dataset", "medium-replay", "--method", "bc-10,dt", "--seeds", "0,1")
    found = document(*words, "--out", tmp_path / "none", "--dry-run")
    assert (found["runs"], found["finished"], found["updates"]) == (12, 0, 36_000)
    assert found["core_hours"] == pytest.approx((6 * 3000 * 0.003 + 6 * 3000 * 0.02) / 3600, abs=0.01)
    assert not (tmp_path / "none").exists()
    assert gq("benchmark", "builtin", "--seeds", "x").exit_code == 2


def test_tables_call_recipes_by_their_names(tmp_path: Path) -> None:
    settings = {"data.dataset": "d4rl/hopper-medium-v2", "task": "Hopper-v5"}
    found = []
    for recipe in ("td3bc", "rebrac"):
        run = write_run(tmp_path / recipe, presets.td3bc(recipe, settings["data.dataset"]).replace(settings))
        found.append(History(run, read_settings(run), []))
    assert method_of(found) == ["td3bc", "rebrac"]

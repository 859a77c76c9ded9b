"""Suites: which runs there are, what each needs next, what their table says, and that a folder holds one suite."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from commandline import document, gq
from gq import presets
from gq.benchmark.benchmark import Request, cost, page
from gq.benchmark.suites import SUITES, Method, Suite, choose, plan
from gq.datasets.names import resolve
from gq.errors import UsageError
from gq.paths import read_json
from gq.results.history import History, method_of, read_settings
from gq.results.tables import text_of
from gq.runs.checkpoint import choose_checkpoint
from gq.runs.evaluations import read_evaluations
from gq.sweeps.folder import Sweep, create_or_continue, read_sweep, statuses
from gq.sweeps.local import LocalOptions, run_members
from gq.sweeps.plan import configuration
from measured import write_run
from tiny import write_hopper_file

TINY = Suite(
    "tiny",
    ("builtin/hopper/medium",),
    (Method("bc-10", "bc", {"model.embed_dim": 8, "eval.num_episodes": 1}, 4, 0.1),),
    evaluations=2,
)


def test_a_suite_is_every_method_on_every_dataset_one_seed_after_the_other() -> None:
    found = plan(SUITES["builtin"], (0, 1), 20).members
    assert len(found) == 2 * 9 * 7
    assert [member.settings["train.seed"] for member in found] == [0] * 63 + [1] * 63
    assert found[0].name == "hopper-medium-replay-bc-10-seed0"
    assert len({member.name for member in found}) == len(found)


def test_all_suites_name_datasets_and_settings_that_exist() -> None:
    for suite in SUITES.values():
        assert [resolve(name).id for name in suite.datasets] == list(suite.datasets)
        for member in plan(suite, (0,), 20).members:
            config = configuration(member.algo, member.settings)
            assert (config.algo, config.train.steps) == (member.algo, member.settings["train.steps"])
    sizes = {member.values["method"]: member.settings.get("size") for member in plan(suite, (0,), 20).members}
    assert (sizes["td3bc"], sizes["rebrac"]) == (None, "rebrac")


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


def test_what_a_run_is_trained_with_is_in_its_settings() -> None:
    (member,) = plan(TINY, (3,), 5).members
    assert (member.name, member.algo) == ("hopper-medium-bc-10-seed3", "bc")
    expected = {"train.seed": 3, "train.steps": 4, "eval.every": 2, "checkpoint.every": 2, "log.sweep": "tiny"}
    assert expected.items() <= member.settings.items()


@pytest.mark.usefixtures("fast_disk")
def test_runs_are_trained_and_evaluated_until_nothing_is_left_and_stand_side_by_side(tmp_path: Path) -> None:
    data = write_hopper_file(tmp_path / "data.hdf5")
    suite = replace(TINY, datasets=(str(data),))
    sweep = create_or_continue(tmp_path / "out", plan(suite, (0, 1), 2), threads=1)
    longer = plan(replace(suite, methods=(replace(suite.methods[0], updates=9),)), (0,), 2)
    with pytest.raises(UsageError, match=r"began with checkpoint.every = 2, not 4"):
        create_or_continue(sweep.folder, longer, threads=1)
    commands = Counter[str]()
    for member in sweep.members:
        while words := sweep.next_command(member):
            commands[words[0]] += 1
            result = gq(*words)
            assert result.exit_code == 0, result.stderr
    assert commands["train"] == 2
    assert 2 <= commands["eval"] <= 4, "a best checkpoint that is the last one is evaluated once"
    assert [one.state for one in statuses(sweep)] == ["finished", "finished"]
    (again, _) = create_or_continue(sweep.folder, plan(suite, (0, 1), 3), threads=1).members
    more = read_sweep(sweep.folder).next_command(again)
    assert more[:1] + more[-2:] == ["eval", "--episodes", "3"], "more episodes are wanted"
    request = Request(suite, (0, 1, 2), 2)
    folder_cost = cost(replace(request, suite=replace(suite, datasets=("builtin/hopper/medium",))), sweep.folder)
    assert (folder_cost.updates, folder_cost.finished) == (12, 0)

    results = page(sweep, command="gq benchmark <tiny>")
    (row,) = results.rows()
    runs = [read_evaluations(sweep.run(member.name)) for member in sweep.members]
    lasts = [found.of(choose_checkpoint(found.run, "last")).fullest for found in runs]
    assert row.cells["last"].values == [float(last.returns.mean()) for last in lasts if last]
    highest = [read_json(choose_checkpoint(found.run, "last") / "state.json")["progress"] for found in runs]
    assert row.cells["maximum"].values == [one["best_return"] for one in highest]
    assert row.selection == row.cells["maximum"].value - row.cells["last"].value
    assert row.parameters > 0
    assert len(results.runs[0].dataset_sha256) == 64
    html = (sweep.folder / "index.html").read_text()
    assert "<svg" in html
    assert "gq benchmark &lt;tiny&gt;" in html
    table = (sweep.folder / "table.md").read_text()
    assert f"| {data} | bc-10 | {text_of(row.cells['last'])} |" in table
    assert read_json(sweep.folder / "results.json")["rows"][0]["selection"] == row.selection


@pytest.mark.usefixtures("own_home")
def test_a_run_that_fails_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.hdf5"
    bad.write_bytes(b"no data")
    sweep = create_or_continue(tmp_path / "out", plan(replace(TINY, datasets=(str(bad),)), (0,), 2), threads=1)
    (found,) = run_members(sweep, sweep.members, LocalOptions())
    assert found.state == "failed"
    results = page(sweep, command="gq")
    assert "bad.hdf5" in results.failed[found.name]
    assert (results.runs, results.returns, results.rows()) == ([], {}, [])
    assert found.name in (sweep.folder / "index.html").read_text()


@pytest.mark.usefixtures("own_home")
def test_a_command_that_leaves_its_member_as_it_was_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = create_or_continue(tmp_path / "out", plan(TINY, (0,), 2), threads=1)
    monkeypatch.setattr(Sweep, "next_command", lambda sweep, member: ["train", "--help"])
    (found,) = run_members(sweep, sweep.members, LocalOptions())
    assert (found.state, found.starts) == ("failed", 1)


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

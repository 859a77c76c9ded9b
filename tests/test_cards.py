"""A run's card says what was measured and nothing else, grows with evaluations, and gives way to who edits it."""

import json
import re
from pathlib import Path

import pytest

from commandline import TINY, gq, train_tiny
from gq.runs.card import CARD, CARD_BESIDE, card_text, is_own, refresh_card, write_card
from gq.runs.folder import download_command
from tiny import write_hopper_file

pytestmark = pytest.mark.computes


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return train_tiny(tmp_path)


def front_matter(card: str) -> dict:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(card.split("---\n")[1])


def test_a_new_run_says_that_it_was_not_evaluated(run: Path) -> None:
    card = (run / CARD).read_text()
    assert "It was not evaluated yet: `gq eval run` does" in card
    assert "A Decision Transformer for Hopper-v5, trained by gq on `data.hdf5`: " in card
    assert str(run.parent) not in card, "folders are nobody's business"
    head = front_matter(card)
    assert "model-index" not in head
    assert (head["library_name"], head["pipeline_tag"]) == ("gq", "reinforcement-learning")
    assert {"decision-transformer", "Hopper-v5"} <= set(head["tags"])
    assert card == card_text(run), "it follows from the folder"


def test_an_evaluation_brings_its_numbers_to_the_card_and_the_hub_reads_them(run: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    evaluated = json.loads(gq("eval", run, "--episodes", 3, "--target", "30,10", "--seed", 5, "--json").stdout)
    card = (run / CARD).read_text()
    assert is_own(card)
    assert "not evaluated" not in card
    results = hub.ModelCard(card).data.eval_results
    expected = [f"{r['return_mean']:.2f} +/- {r['return_std']:.2f}" for r in evaluated["results"]]
    assert [r.metric_value for r in results if r.metric_type == "mean_reward"] == expected
    assert [r.metric_value for r in results if r.metric_type == "normalized_score"] == [
        round(r["normalized_mean"], 2) for r in evaluated["results"]
    ]
    assert {r.dataset_type for r in results} == {"Hopper-v5"}
    first = evaluated["results"][0]
    cells = ["step-000000004 (best, last)", "target 30", f"{first['return_mean']:.0f} ± {first['return_std']:.0f}"]
    assert f"| {' | '.join(cells)} |" in card
    assert "| 3 | 5 to 7 |" in card


def test_the_evaluation_of_more_episodes_counts_and_damaged_ones_do_not(run: Path) -> None:
    for episodes in (3, 2):
        gq("eval", run, "--episodes", episodes, "--target", "30")
    (run / "evals" / "damaged.json").write_text('{"results": [')
    rows = [line for line in card_text(run).splitlines() if "| target 30 |" in line]
    assert [row.endswith("| 3 | 0 to 2 |") for row in rows] == [True]


def test_evaluations_with_another_context_stand_beside_each_other(run: Path) -> None:
    for context, episodes in (("sliding", 2), ("blocks", 3), ("blocks", 1)):
        gq("eval", run, "--episodes", episodes, "--target", "30", "--context", context)
    older = json.loads((first := min((run / "evals").glob("*.json"))).read_text())
    assert older.pop("context") == "sliding"
    first.with_stem("00000000-older").write_text(json.dumps(older))  # of a gq that knew no other context
    rows = [line for line in card_text(run).splitlines() if "| target 30" in line]
    assert ["contexts in blocks" in row for row in rows] == [False, True]
    assert [row.split(" | ")[-2] for row in rows] == ["2", "3"]


def test_the_evaluation_while_training_is_not_mistaken_for_one(tmp_path: Path) -> None:
    data, run = write_hopper_file(tmp_path / "data.hdf5"), tmp_path / "run"
    settings = [*TINY, "--set", "eval.every=2", "--target", "20"]
    gq("train", "dt", "--dataset", data, "--steps", 2, "--out", run, *settings)
    card = (run / CARD).read_text()
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"| target 20 | {last['eval/target_20/return_mean']:.0f} ± " in card
    assert "those that choose the best checkpoint" in card
    assert "not evaluated yet" in card
    assert "model-index" not in front_matter(card)


def test_an_edited_card_stays_and_the_new_one_lies_beside(run: Path) -> None:
    mine = (run / CARD).read_text().replace("# run", "# My best run")
    (run / CARD).write_text(mine)
    result = gq("eval", run, "--episodes", 1, "--target", "30")
    assert f"{run / CARD} was edited and stays; the new card is {run / CARD_BESIDE}" in result.stderr
    assert (run / CARD).read_text() == mine
    assert "| target 30 |" in (run / CARD_BESIDE).read_text()
    (run / CARD_BESIDE).write_text("mine too")
    assert "was edited and stays" in refresh_card(run)
    assert (run / CARD_BESIDE).read_text() == "mine too"
    assert (run / CARD).read_text() == mine


def test_a_card_that_was_removed_is_not_brought_back_by_an_evaluation(run: Path) -> None:
    (run / CARD).unlink()
    assert refresh_card(run) == ""
    assert not (run / CARD).exists(), "for some runs it tells that they have ended"
    assert write_card(run) == run / CARD


def test_the_command_of_the_card_makes_an_equal_run(run: Path, tmp_path: Path) -> None:
    found = re.search(r"^ {4}gq (train dt .*)$", (run / CARD).read_text(), re.MULTILINE)
    assert found
    words = found[1].replace("config.toml", str(run / "config.toml")).replace("data.hdf5", str(tmp_path / "data.hdf5"))
    result = gq(*words.split(), "--out", tmp_path / "again")
    assert result.exit_code == 0, result.stderr
    weights = [folder / "checkpoints/step-000000004/model.safetensors" for folder in (run, tmp_path / "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_cards_of_the_other_kinds_of_runs(tmp_path: Path) -> None:
    data = write_hopper_file(tmp_path / "data.hdf5")
    small = ["--set", "eval.num_episodes=1", "--set", "eval.every=0"]
    assert gq("train", "bc", "--dataset", data, "--steps", 2, "--out", tmp_path / "bc", *small).exit_code == 0
    assert gq("train", "odt", "--dataset", data, "--steps", 2, "--out", tmp_path / "odt", *small).exit_code == 0
    budget = ["--iterations", 1, "--rollouts", 1, "--updates", 1, "--set", "online.final_episodes=2"]
    result = gq("finetune", tmp_path / "odt", "--out", tmp_path / "online", *budget)
    assert result.exit_code == 0, result.stderr
    assert "A behaviour cloning policy for Hopper-v5" in (tmp_path / "bc" / CARD).read_text()
    card = (tmp_path / "online" / CARD).read_text()
    assert "starting from `odt` step-000000002: " in card
    assert "gq finetune odt --checkpoint 2 --config config.toml" in card
    stored = json.loads((tmp_path / "online" / "comparison.json").read_text())["targets"]
    assert stored[0]["num_episodes"] == 2
    assert f"| {stored[0]['start_mean']:.0f} | {stored[0]['end_mean']:.0f} |" in card
    for name in ("bc", "odt", "online"):
        assert is_own((tmp_path / name / CARD).read_text())


def test_what_makes_a_run_again_names_as_many_transitions_as_it_had(own_home: Path) -> None:
    assert gq("download", "builtin/hopper/medium", "--transitions", "2000", "-q").exit_code == 0
    small = ["--steps", "1", "--set", "eval.every=0", "--set", "eval.num_episodes=1", *TINY]
    run = own_home / "runs" / "small"
    trained = gq("train", "dt", "--dataset", "builtin/hopper/medium", "--out", run, *small)
    assert trained.exit_code == 0, trained.stderr
    command = "gq download builtin/hopper/medium --transitions 2000"
    assert command in (run / "README.md").read_text()
    assert f"again: {command} && gq train dt" in gq("runs", "show", run).stdout
    assert json.loads(gq("runs", "show", run, "--json").stdout)["data_command"] == command
    environment = {"dataset": {"transitions": 100_000}}
    assert download_command("builtin/hopper/medium", environment).endswith("--transitions 100000")
    assert download_command("/data/a.hdf5", environment) == ""

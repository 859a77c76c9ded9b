"""`gq table` and its aggregates: the right numbers in the right cells, rliable's definitions, every format."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from commandline import gq
from gq.errors import UsageError
from gq.results import aggregates
from gq.results.tables import formatted, result_table
from gq.rollouts.intervals import mean_interval
from measured import LAST, dt_config, write_evaluation, write_run

# [tasks][seeds], and what rliable 1.2.0 gives for them.
FIRST = [
    np.array(one)
    for one in ([60.0, 37.7, 61.5, 44.5, 62.6], [67.5, 48.6, 93.5, 72.2, 36.7], [53.1, 35.2, 47.7, 68.9, 59.3])
]
SECOND = [np.array(one) for one in ([70.9, -7.0, 42.9, 54.7], [9.7, 11.3, 12.0, 44.4], [36.3, -5.3, 58.1, -25.5])]


def test_aggregates_are_rliables() -> None:
    assert aggregates.mean(FIRST) == pytest.approx(56.6, abs=1e-12)
    assert aggregates.median(FIRST) == pytest.approx(53.26, abs=1e-12)
    assert aggregates.iqm(FIRST) == pytest.approx(56.08888888888889, abs=1e-12)
    assert aggregates.optimality_gap(FIRST) == pytest.approx(43.4, abs=1e-12)
    assert aggregates.improvement(FIRST, SECOND) == pytest.approx(0.7833333333333332, abs=1e-12)
    assert aggregates.improvement(SECOND, FIRST) == pytest.approx(1 - 0.7833333333333332, abs=1e-12)
    assert aggregates.improvement(FIRST, FIRST) == pytest.approx(0.5)  # ties count half
    shares = aggregates.profile(FIRST, np.array([20.0, 50.0, 80.0]))
    np.testing.assert_allclose(shares, [1, 9 / 15, 1 / 15], atol=1e-12)


def test_intervals_are_over_seeds_within_tasks() -> None:
    low, high = aggregates.interval(aggregates.mean, FIRST) or (0, 0)
    errors = [one.std() / np.sqrt(len(one)) for one in FIRST]
    half = 1.96 * np.sqrt(np.sum(np.square(errors))) / 3  # of the mean of three independent means
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)
    assert aggregates.interval(aggregates.mean, [np.array([1.0]), np.array([5.0])]) is None
    low, high = aggregates.improvement_interval(FIRST, SECOND) or (0, 0)
    assert 0.5 < low < 0.783 < high <= 1


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Return runs of two methods on two datasets with two seeds each, whose returns are known."""
    folder, found = tmp_path / "runs", []
    for dataset, base in (("hopper-medium", 1000.0), ("hopper-expert", 2000.0)):
        for method, layers in enumerate((3, 4)):
            for seed in (0, 1):
                config = dt_config(**{"data.dataset": dataset, "model.num_layers": layers, "train.seed": seed})
                run = write_run(folder / f"{dataset}-{layers}-{seed}", config)
                own = base + 100 * method + 10 * seed
                write_evaluation(run, {1000.0: [1.0], 3000.0: [own - 5, own + 5]})
                write_evaluation(run, {3000.0: [own - 50]}, checkpoint=LAST, name="2")
                found.append(run)
    return found


def test_cells_hold_the_seeds_of_a_method_on_a_dataset(runs: list[Path]) -> None:
    table = result_table(runs, unit="return")
    assert table.rows == ["hopper-expert", "hopper-medium"]
    assert table.columns == ["dt, model.num_layers 3", "dt, model.num_layers 4"]
    cell = table.cells["hopper-medium", "dt, model.num_layers 4"]
    assert (cell.values, cell.value, cell.target) == ([1100, 1110], 1105, 3000)
    assert cell.interval == mean_interval(np.array([1100.0, 1110.0]), fewest=2)
    assert table.overall == {}  # returns of different tasks are not averaged
    last = result_table(runs, unit="return", which="last")
    assert last.cells["hopper-expert", "dt, model.num_layers 3"].values == [1950, 1960]


def test_scores_are_aggregated_over_rows(runs: list[Path]) -> None:
    table = result_table(runs)
    assert table.unit == "score"
    three, four = table.columns
    values = [table.cells[row, three].values for row in table.rows]
    assert table.overall[three]["mean"][0] == pytest.approx(np.mean(values))
    assert table.improvements[0][:3] == (three, four, 0.0)  # each seed of the second is better on both
    assert table.profiles[three][0] == 1
    (run, *others) = runs
    part = result_table(others, statistic="iqm")
    assert part.overall.keys() == {three, four}
    assert run.name not in part.cells["hopper-medium", three].runs


def test_what_cannot_count_is_said(runs: list[Path], tmp_path: Path) -> None:
    bare = write_run(tmp_path / "bare", dt_config())
    table = result_table([*runs, bare])
    assert any(
        "bare is left out: its best checkpoint was not evaluated at its highest target, 3000" in n for n in table.notes
    )
    with pytest.raises(UsageError, match="no run has an evaluation"):
        result_table([bare])
    twin = write_run(tmp_path / "twin", dt_config(**{"data.dataset": "hopper-medium", "model.num_layers": 3}))
    write_evaluation(twin, {3000.0: [1.0] * 5})
    repeated = result_table([runs[0], twin])
    assert any("have the same seed" in note for note in repeated.notes)
    assert next(iter(repeated.cells.values())).interval is None


def test_every_format_holds_the_cells(runs: list[Path]) -> None:
    table = result_table(runs, unit="return")
    rows = list(csv.reader(io.StringIO(formatted(table, "csv"))))
    assert rows[0] == ["", "dt, model.num_layers 3", "dt, model.num_layers 4"]
    assert rows[2][0] == "hopper-medium"
    assert rows[2][2].startswith("1,105 [")
    assert rows[2][2].endswith(" (2)")
    latex = formatted(table, "latex")
    assert latex.startswith("\\begin{tabular}{lrr}\n\\toprule")
    assert "dt, model.num\\_layers 3" in latex
    assert latex.count("\\\\") == 3
    markdown = formatted(table, "md").splitlines()
    assert markdown[1] == "| --- | ---: | ---: |"
    assert len(markdown) == 4
    assert json.loads(formatted(table, "json"))["rows"] == table.rows


def test_the_command_takes_patterns_and_writes_files(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GQ_RUNS_DIR", str(runs[0].parent))
    result = gq("table", "hopper-*", "--returns", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert len(document["cells"]) == 4
    shown = gq("table", str(runs[0].parent / "hopper-medium-*"))
    assert shown.exit_code == 0
    assert "hopper-medium" in shown.stdout
    assert "hopper-expert" not in shown.stdout
    file = tmp_path / "results.tex"
    assert gq("table", "hopper-*", "-o", str(file)).stdout.strip() == str(file)
    assert "\\bottomrule" in file.read_text()
    again = gq("table", "hopper-*", "-o", str(file))
    assert (again.exit_code, "--force" in again.stderr) == (2, True)
    nothing = gq("table", "walker-*")
    assert nothing.exit_code == 2
    assert "no run fits walker-*" in nothing.stderr

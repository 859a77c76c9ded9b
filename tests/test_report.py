"""`gq report`: one page with everything in it, right numbers, nothing from files that becomes markup."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import gq.results.report as reporting
from commandline import gq, train_tiny
from gq import presets
from gq.datasets.loading import load_dataset
from gq.results.facts import Facts
from gq.results.figures import swarm
from gq.results.gather import ReportOptions, gather
from gq.results.report import report
from measured import LAST, dt_config, write_evaluation, write_run
from tiny import write_hopper_file

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
VOID = {"meta", "br", "img", "link", "input", "hr"}
ON_RECORD = ReportOptions(rollouts=False)


class Outline(HTMLParser):
    """Collects tags, attributes and text, and checks that elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(name)
        self.attributes += attributes
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        self.words += data + " "


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    assert parser.open == []
    return parser


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_hopper_file(tmp_path / "d.hdf5", num_episodes=20)


def seeds(tmp_path: Path, data: Path, num: int = 3) -> list[Path]:
    """Write runs that differ by their seed; their means at 3000 are 2000, 2100, ..., at their last checkpoint 1000."""
    runs = []
    for seed in range(num):
        run = write_run(tmp_path / f"seed-{seed}", dt_config(train__seed=seed, data__dataset=str(data)))
        spread = np.linspace(-50, 50, 20)
        write_evaluation(run, {1000.0: 900 + spread, 3000.0: 2000 + 100 * seed + spread})
        write_evaluation(run, {1000.0: spread, 3000.0: 1000 + spread}, checkpoint=LAST, name="20260101-000001-000000")
        runs.append(run)
    return runs


def page_of(*runs: Path) -> tuple[Facts, str]:
    path = runs[0].parent / "page.html"
    facts, _ = report(runs, path, ON_RECORD)
    return facts, path.read_text(encoding="utf-8")


def test_the_facts_of_a_run(tmp_path: Path, data: Path) -> None:
    facts, page = page_of(*seeds(tmp_path, data, 1))
    (run,) = facts.runs
    assert run.best
    assert run.last
    assert [measure.label for measure in run.best.measures] == ["1000", "3000"]
    assert run.headline
    assert run.headline.summary.return_mean == pytest.approx(2000)
    assert run.last.headline
    assert run.last.headline.summary.return_mean == pytest.approx(1000)
    returns = load_dataset(str(data)).returns
    assert run.data
    assert run.data.return_mean == pytest.approx(returns.mean())
    assert run.data.quantiles["p100"] == pytest.approx(returns.max())
    assert sum(run.data.counts) == run.data.num_episodes == 20
    assert any("has changed since the training" in note for note in run.notes), "the hash on record is another"
    words = outline(page).words
    for shown in (
        "With target 3,000",
        "2,000",
        "721,731 parameters",
        "cpu, float32",
        "abc",
        "seeds 0 to 19",
        "gq report",
    ):
        assert shown in words
    assert page.count("<svg") == 6, "three figures, each for wide and for narrow pages"


def test_seeds_are_grouped_with_an_interval_over_runs(tmp_path: Path, data: Path) -> None:
    clone = presets.bc().replace({"task": "Hopper-v5", "data.dataset": str(data), "eval.targets": [3000.0]})
    other = write_run(tmp_path / "bc", clone)
    write_evaluation(other, {3000.0: [1500.0] * 20})
    facts, page = page_of(*seeds(tmp_path, data), other)
    assert [(len(group.runs), len(group.rows)) for group in facts.groups] == [(3, 2), (1, 1)]
    row = facts.groups[0].rows[1]
    assert (row.mean, row.last_mean) == pytest.approx((2100, 1000))
    assert row.ci95 == pytest.approx((2100 - 4.3027 * 100 / 3**0.5, 2100 + 4.3027 * 100 / 3**0.5), rel=1e-4)
    assert row.num_episodes == 60
    baselines = facts.runs[0].baselines
    assert [one.is_policy for one in baselines] == [True, False]
    assert baselines[0].return_mean == 1500
    parsed = outline(page)
    assert parsed.tags.count("details") > 4
    assert "interval over runs" in parsed.words


def test_a_repeated_seed_gives_no_interval_over_runs(tmp_path: Path, data: Path) -> None:
    runs = [*seeds(tmp_path, data, 2), tmp_path / "again"]
    shutil.copytree(runs[0], runs[2])
    facts, page = page_of(*runs)
    (group,) = facts.groups
    assert (group.name, len(group.runs)) == ("3 runs", 3)
    assert [row.ci95 for row in group.rows] == [None, None]
    note = "seed-0 and again have the same seed: no interval over runs"
    assert facts.notes == [note]
    assert note in page
    assert "no interval: a seed is repeated" in page
    shown = gq("report", *runs, "--no-rollouts", "-o", tmp_path / "page.json")
    assert note in shown.stderr.splitlines()
    assert page_of(*runs[1:])[0].groups[0].rows[0].ci95 is not None


def test_runs_with_other_budgets_are_no_seeds_of_one_experiment(tmp_path: Path) -> None:
    runs = []
    for seed, decisions in enumerate((1000, 9000)):
        config = presets.tdmpc2("1").replace({"task": "dog-run", "train.seed": seed, "train.decisions": decisions})
        runs.append(write_run(tmp_path / str(seed), config))
        write_evaluation(runs[-1], {"plan": [1.0, 2.0, 3.0, 4.0, 5.0]})
    facts, _ = page_of(*runs)
    assert [group.name for group in facts.groups] == ["train.decisions 1000", "train.decisions 9000"]


def test_nothing_from_files_becomes_markup(tmp_path: Path, data: Path) -> None:
    evil = "<script>alert(1)<" + "img src=x onerror=alert(2)> & \" ' `"
    (run,) = seeds(tmp_path, data, 1)
    hostile = run.rename(tmp_path / evil.replace("/", ""))
    environment = json.loads((hostile / "environment.json").read_text())
    environment |= {"compute": evil, "versions": {evil: evil}, "dataset": {"origin": "x", evil: evil}}
    (hostile / "environment.json").write_text(json.dumps(environment))
    file = next((hostile / "evals").iterdir())
    file.write_text(json.dumps(json.loads(file.read_text()) | {"versions": {evil: evil}}))
    _, page = page_of(hostile)
    parsed = outline(page)
    assert "script" not in parsed.tags
    assert "img" not in parsed.tags
    assert not any(name.startswith("on") for name, _ in parsed.attributes)
    assert evil in parsed.words


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path, data: Path) -> None:
    (run,) = seeds(tmp_path, data, 1)
    (run / "videos").mkdir()
    (run / "videos" / "old.mp4").write_bytes(b"old")
    (run / "videos" / "huge.mp4").write_bytes(bytes(3_000_001))
    facts, page = page_of(run)
    assert facts.runs[0].video
    assert facts.runs[0].video.name == "old.mp4"
    parsed = outline(page)
    addresses = [value or "" for name, value in parsed.attributes if name in ("src", "href", "srcset", "xlink:href")]
    ids = {f"#{value}" for name, value in parsed.attributes if name == "id"}
    assert set(addresses) - ids == {"data:video/mp4;base64," + base64.b64encode(b"old").decode()}
    assert set(re.findall(r"url\((.*?)\)", page)) <= ids
    assert "http" not in re.sub(r"http-equiv", "", page)
    assert ("http-equiv", "Content-Security-Policy") in parsed.attributes
    assert len(page) < 5_000_000


def test_pictures_say_what_they_show_to_those_who_do_not_see_them(tmp_path: Path, data: Path) -> None:
    _, page = page_of(*seeds(tmp_path, data))
    parsed = outline(page)
    labels = [value for name, value in parsed.attributes if name == "aria-labelledby"]
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {part for label in labels for part in (label or "").split()} <= set(ids)
    assert len(labels) == page.count("<svg") == page.count('role="img"')
    assert ("lang", "en") in parsed.attributes


def test_an_incomplete_run_is_reported_with_what_is_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", dt_config())
    shutil.rmtree(run / "checkpoints")
    (run / "environment.json").unlink()
    (run / "metrics.jsonl").write_text("")
    facts, page = page_of(run)
    notes = " ".join(facts.runs[0].notes)
    for said in ("no checkpoint yet", "environment.json is missing", "no learning curve", "interrupted", "are missing"):
        assert said in notes
    assert "It has not been evaluated yet." in outline(page).words


@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_records_of_the_wrong_type_count_as_missing(tmp_path: Path, data: Path, value: object) -> None:
    (run,) = seeds(tmp_path, data, 1)
    state = run / "checkpoints" / "step-000000100" / "state.json"
    state.write_text(json.dumps({"progress": value}))
    facts = json.loads((run / "environment.json").read_text())
    wrong = dict.fromkeys(("versions", "dataset", "parent", "imported"), value)
    (run / "environment.json").write_text(json.dumps(facts | wrong))
    for kind in ("html", "json"):
        result = gq("report", run, "--no-rollouts", "-o", tmp_path / f"page.{kind}")
        assert result.exit_code == 0, result.stderr


def test_a_trial_of_few_episodes_is_no_evaluation(tmp_path: Path, data: Path) -> None:
    run = write_run(tmp_path / "a", dt_config(data__dataset=str(data)))
    write_evaluation(run, {1000.0: [1.0] * 4, 3000.0: [1.0] * 4})
    facts, _ = page_of(run)
    assert facts.runs[0].headline is None
    assert any("has no evaluation of 5 episodes or more" in note for note in facts.runs[0].notes)


def test_other_targets_on_record_are_shown_apart(tmp_path: Path, data: Path) -> None:
    (run,) = seeds(tmp_path, data, 1)
    write_evaluation(run, {4000.0: [9999.0] * 5}, name="20260201-000000-000000")
    facts, _ = page_of(run)
    assert facts.runs[0].best
    assert [(m.label, m.is_own) for m in facts.runs[0].best.measures] == [
        ("1000", True),
        ("3000", True),
        ("4000", False),
    ]
    assert facts.runs[0].headline
    assert facts.runs[0].headline.label == "3000", "the headline is not chosen by its result"


def test_a_planner_has_modes_and_the_published_curve(tmp_path: Path) -> None:
    config = presets.tdmpc2("1").replace({"task": "cartpole-swingup"})
    run = write_run(tmp_path / "a", config)
    records = [{"step": k, "decisions": k, "frames": 2 * k, "eval/return_mean": 800.0} for k in (20_000, 60_000)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_evaluation(run, {"baseline": [850.0] * 5, "naive3": [840.0] * 5})
    facts, page = page_of(run)
    assert facts.runs[0].headline
    assert (facts.runs[0].headline.label, facts.runs[0].data) == ("baseline", None)
    assert "3 seeds" in outline(page).words
    assert "TD-MPC2 paper's results, 3 seeds: mean ± sd" in re.findall(r"<text[^>]*>([^<]*)</text>", page)


def test_what_is_missing_is_evaluated(tmp_path: Path) -> None:
    run = train_tiny(tmp_path)
    result = gq("report", run, "--episodes", "5", "--json")
    assert result.exit_code == 0, result.stderr
    (document,) = json.loads(result.stdout)["runs"]
    assert [len(measure["episodes"]) for measure in document["best"]["measures"]] == [5, 5]
    assert not (run / "report.html").exists()
    before = len(list((run / "evals").iterdir()))
    result = gq("report", run, "-q")
    assert Path(result.stdout.strip()) == run / "report.html"
    assert len(list((run / "evals").iterdir())) == before, "on record by now"


def test_a_small_video_is_made_and_embedded_on_request(tmp_path: Path) -> None:
    run = train_tiny(tmp_path)
    file = tmp_path / "page.html"
    result = gq("report", run, "--video", "--no-rollouts", "-o", file)
    assert result.exit_code == 0, result.stderr
    (film,) = (run / "videos").iterdir()
    address = "data:video/mp4;base64," + base64.b64encode(film.read_bytes()).decode()
    assert ("src", address) in outline(file.read_text(encoding="utf-8")).attributes
    with av.open(film) as video:
        assert (video.streams.video[0].width, video.streams.video[0].height) == (200, 200)
        assert sum(1 for _ in video.decode(video=0)) > 1
    assert file.stat().st_size < 5_000_000


def test_a_report_of_a_run_that_is_gone_is_written_elsewhere_only(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = seeds(tmp_path, data, 1)

    def gather_and_rename(*arguments: Any) -> Facts:
        found = gather(*arguments)
        run.rename(tmp_path / "renamed")
        return found

    monkeypatch.setattr(reporting, "gather", gather_and_rename)
    refused = gq("report", run)
    assert refused.exit_code == 1
    assert "was renamed or removed meanwhile" in refused.stderr
    assert not run.exists()
    (tmp_path / "renamed").rename(run)
    assert gq("report", run, "-o", tmp_path / "page.html").exit_code == 0


def test_a_file_is_not_replaced_unasked(tmp_path: Path, data: Path) -> None:
    (run,) = seeds(tmp_path, data, 1)
    file = tmp_path / "mine.json"
    file.write_text("mine")
    assert gq("report", run, "-o", file).exit_code == 2
    assert file.read_text() == "mine"
    assert gq("report", run, "-o", file, "--force").exit_code == 0
    assert json.loads(file.read_text())["runs"][0]["name"] == "seed-0"
    assert gq("report", run, "-o", tmp_path / "x.pdf").exit_code == 2


def test_equal_episodes_are_drawn_beside_one_another() -> None:
    assert len(set(swarm([10.0] * 5, 0.0).tolist())) == 5
    assert swarm([0.0, 100.0], 1.0).tolist() == [0, 0]


def test_figures_say_what_the_tables_say_in_the_page_s_own_colours(tmp_path: Path, data: Path) -> None:
    runs = seeds(tmp_path, data, 1)
    runs[0] = runs[0].rename(tmp_path / "a$b$ <i>&amp;")
    _, page = page_of(*runs)
    figures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    words = [re.findall(r"<text[^>]*>([^<]*)</text>", figure) for figure in figures]
    assert {"target 1,000", "target 3,000", "the data's 20 episodes"} <= set(words[0])
    assert {"best checkpoint", "last checkpoint", "return = target", "target return"} <= set(words[2])
    assert {"target 3000", "target 1000", "updates", "best checkpoint"} <= set(words[4])
    assert "target 3,000: mean 2,000 of 20 episodes" in figures[0]
    assert "Returns of a$b$ &lt;i&gt;&amp;amp;" in figures[0]
    assert "target 3000: 2,200 at 200" in figures[4]
    for figure in figures:
        assert re.findall(r"#[0-9a-f]{6}", figure) == [], "colours follow the screen, light or dark"
        assert "var(--c0)" in figure
        assert len(figure) < 60_000


def test_equal_facts_give_equal_pages(tmp_path: Path, data: Path) -> None:
    runs = seeds(tmp_path, data, 2)
    assert page_of(*runs)[1] == page_of(*runs)[1]


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
@pytest.mark.parametrize(("width", "scheme"), [(1000, 1), (1000, 0), (380, 1)])
def test_a_browser_shows_it_without_a_network(tmp_path: Path, data: Path, width: int, scheme: int) -> None:
    page_of(*seeds(tmp_path, data))
    picture, height = tmp_path / f"report-{width}-{scheme}.png", 1400
    assert BROWSER
    command = [
        *(BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking"),
        *(f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}"),
        *(f"--window-size={width},{height}", f"--screenshot={picture}", f"file://{tmp_path / 'page.html'}"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("L"), float)
    assert pixels.shape[0] == height
    is_dark = pixels[5, 5] < 60
    assert is_dark == (scheme == 0)
    ink = np.abs(pixels - pixels[5, 5]) > 60
    assert 0.01 < ink.mean() < 0.4, "there is something to read"
    assert ink[height // 2 :].any(), "and not on top alone"

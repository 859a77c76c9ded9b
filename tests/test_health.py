"""The health report: histograms, targets, scale, and the picture."""

from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gq.data.returns import suggested_scale
from gq.repair.health import BAR_WIDTH, Health, bar, histogram, measure, round_up
from gq.results.distributions import of_health, write_histograms


def example() -> Health:
    returns = np.array([100.0, 900.0, 1000.0, 1000.0, 3000.0])
    lengths = np.array([50, 400, 500, 500, 1000])
    attributes = {"env_id": "Hopper-v5", "mujoco_version": "3.17.0", "license": "MIT", "requirements": "a==1"}
    terminated = np.array([True, True, True, True, False])
    return measure(returns, lengths, terminated, attributes=attributes, sha256="ab")


def test_the_numbers_are_those_of_the_episodes() -> None:
    health = example()
    assert (health.num_episodes, health.num_transitions, health.num_terminated) == (5, 2450, 4)
    assert (health.return_mean, health.return_min, health.return_max) == (1200.0, 100.0, 3000.0)
    assert health.targets == {"p50": 1000.0, "p90": 3000.0, "p99": 3000.0, "max": 3000.0}
    assert health.return_scale == 1000.0
    assert health.versions == {"env_id": "Hopper-v5", "mujoco_version": "3.17.0", "requirements": "a==1"}
    assert sum(health.document()["return_histogram"]["counts"]) == 5


@hypothesis.example([17.0, -5e-324])
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_every_value_is_in_a_bin_between_round_edges(values: list[float]) -> None:
    result = histogram(np.array(values))
    assert sum(result.counts) == len(values)
    assert len(result.edges) == len(result.counts) + 1 <= 20
    assert result.edges[0] <= min(values)
    assert result.edges[-1] >= max(values)


@pytest.mark.parametrize(("step", "expected"), [(0.11, 0.2), (1.0, 1.0), (37.0, 50.0), (501.0, 1000.0)])
def test_steps_are_round(step: float, expected: float) -> None:
    assert round_up(step) == pytest.approx(expected)


@pytest.mark.parametrize(("largest", "scale"), [(3000.0, 1000.0), (-300.0, 1000.0), (5.0, 1.0), (0.0, 1.0), (4e6, 1e6)])
def test_the_scale_is_1000_but_for_other_magnitudes(largest: float, scale: float) -> None:
    assert suggested_scale(np.array([0.0, largest])) == scale


def test_bars_are_as_long_as_they_should() -> None:
    assert bar(0.0) == ""
    assert bar(1e-9).strip() == "▏"
    assert bar(0.5).strip() == "█" * (BAR_WIDTH // 2)
    assert bar(1.0).strip() == "█" * BAR_WIDTH
    text = "\n".join(example().lines())
    assert "suggested targets: p50 1,000, p90 3,000, p99 3,000, max 3,000; return scale: 1,000" in text
    assert "\x1b" not in text


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    write_histograms([of_health(example(), "hopper")], tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")

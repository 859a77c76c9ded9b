"""metrics.jsonl is the truth: cut to its checkpoint, never padded."""

from pathlib import Path

from gq.runs.metrics import MetricsLog


def test_the_log_is_cut_to_the_checkpoint_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write({"step": 1, "loss": 0.5})
    size = log.size
    log.write({"step": 2, "loss": float("nan")})
    log.close()
    assert path.read_text() == '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n'
    again = MetricsLog(path, size=size)
    assert again.size == size
    again.write({"step": 2, "loss": 0.25})
    again.close()
    assert path.read_text() == '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n'


def test_a_log_that_lost_lines_is_not_padded(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, size=1000)
    log.write({"step": 1})
    log.close()
    assert path.read_bytes() == b'{"step": 1}\n'

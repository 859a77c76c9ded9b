"""What training looks like in a terminal, and in a pipe."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gq.cli.output import Output

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from gq.engine.offline import TrainResult

PLAIN_INTERVAL_S = 15.0  # between lines where there is no terminal


class TrainingView:
    """A listener of the engine: a live bar on a terminal, a line now and then elsewhere."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self._bars: Progress | None = None
        self._bar: TaskID | None = None
        self._began, self._first_step, self._last_line = 0.0, 0, 0.0
        self._evaluation = ""

    def __enter__(self) -> "TrainingView":
        if self.output.show_progress:
            from rich import progress

            columns = (
                progress.BarColumn(bar_width=24),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[text]}"),
                progress.TimeRemainingColumn(),
            )
            self._bars = progress.Progress(*columns, console=self.output.console(stderr=True), transient=True)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def note(self, text: str) -> None:
        """Show a fact on a line of its own."""
        if self._bars and not self.output.quiet:
            self._bars.console.print(text)
        else:
            self.output.note(text)

    def progress(self, step: int, total: int, metrics: dict[str, Any]) -> None:
        """Show step, speed, time left, loss, gradient norm and the last evaluation."""
        if "loss" not in metrics:
            self.show_evaluation(step, metrics)
            return
        now = time.monotonic()
        if not self._began:
            self._began, self._first_step = now, step
        rate = (
            (step - self._first_step) / (now - self._began) if step > self._first_step else metrics["steps_per_second"]
        )
        text = f"{rate:.1f} steps/s  loss {metrics['loss']:.4f}  grad {metrics['gradient_norm']:.2f}"
        if self._bars:
            if self._bar is None:
                self._bar = self._bars.add_task("", total=total, text="")
            self._bars.update(self._bar, completed=step, text=f"{text}  {self._evaluation}")
        elif now - self._last_line > PLAIN_INTERVAL_S or step == total:
            self._last_line = now
            left_s = round((total - step) / rate) if rate else 0
            self.output.note(f"step {step}/{total}  {text}  {left_s // 60}:{left_s % 60:02d} left")

    def show_evaluation(self, step: int, metrics: dict[str, Any]) -> None:
        """Show the mean return per target."""
        parts = []
        for name, value in metrics.items():
            if name.endswith("/return_mean"):
                parts.append(f"{name.removeprefix('eval/target_').removesuffix('/return_mean')}: {value:.0f}")
        self._evaluation = "return " + "  ".join(parts)
        self.note(f"step {step}: mean return by target  " + "  ".join(parts))

    def summary(self, result: "TrainResult") -> Any:
        """Return the closing table."""
        from rich.console import Group

        rows = [
            (
                f"{s.target_return:g}",
                f"{s.return_mean:.0f} ± {s.return_std:.0f}",
                f"{s.length_mean:.0f}",
                str(s.num_episodes),
            )
            for s in result.evaluation
        ]
        lines = [f"run: {result.run}", f"{result.steps} steps in {result.seconds:.0f} s; next: gq eval --latest"]
        if not rows:
            return Group(*lines)
        table = self.output.table(["target", "return", "length", "episodes"], rows)
        best = f"last evaluation, on the episodes that choose the best checkpoint (best: step {result.best_step})"
        return Group(best, table, *lines)

"""What training looks like in a terminal, and in a pipe."""

import time
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gq.cli.output import Output, visible

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from gq.config import RunConfig

PLAIN_INTERVAL_S = 15.0  # between lines where there is no terminal
BAR_WIDTHS = (6, 30)
TEXT_WIDTH = 68  # of everything beside the bar
WIDE = 110  # columns, from where on the bar has room for rates


class TrainingView:
    """A listener of the engine: a live bar on a terminal, a line now and then elsewhere."""

    def __init__(self, output: Output, config: "RunConfig") -> None:
        self.output, self.config = output, config
        self.unit = "decisions" if config.algo == "tdmpc2" else "steps"
        self._bars: Progress | None = None
        self._bar: TaskID | None = None
        self._mark: tuple[float, int] | None = None  # time and step of the last report
        self._last_line = 0.0
        self._text = self._evaluation = self._acting = ""

    def __enter__(self) -> "TrainingView":
        if self.output.show_progress:
            from rich import progress

            console = self.output.console(stderr=True)
            columns = (
                progress.SpinnerColumn(),
                progress.BarColumn(bar_width=min(max(console.width - TEXT_WIDTH, BAR_WIDTHS[0]), BAR_WIDTHS[1])),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[text]}", markup=False),
                progress.TimeRemainingColumn(),
            )
            self._bars = progress.Progress(*columns, console=console, transient=True)
            self._bar = self._bars.add_task("", total=None, text="starting")
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def note(self, text: str) -> None:
        """Show a fact on a line of its own, above the bar."""
        if self._bars:
            self._bars.console.print(visible(text), soft_wrap=True)
        else:
            self.output.note(text)

    def progress(self, step: int, total: int, metrics: dict[str, Any]) -> None:
        """Show step, speed, time left, loss, gradient norm and the last evaluation."""
        now = time.monotonic()
        if "loss" not in metrics:
            self.show_evaluation(step, metrics)
            return
        since, mark, self._mark = self._mark is not None, self._mark or (now, step), (now, step)
        rate = metrics["progress_per_second"]
        speed = (step - mark[1]) / (now - mark[0]) if since and step > mark[1] else rate
        text = f"{speed:.1f} {self.unit}/s  loss {metrics['loss']:.4f}  grad {metrics['gradient_norm']:.2f}"
        if updates_left := metrics.get("updates_left"):
            text = f"{updates_left} warm-up updates left"
        rates = self.rates(metrics)
        if self._bars is None or self._bars.console.width >= WIDE:
            text += rates
        if self._bars and self._bar is not None:
            every = self.config.eval.every
            is_next = every and (step % every == 0 or step == total)
            text_now = text + ("  evaluating" if is_next else self._evaluation)
            self._bars.update(self._bar, completed=step, total=total, text=text_now)
            self._text = text
        elif now - self._last_line > PLAIN_INTERVAL_S or step == total:
            self._last_line = now
            left = clock((total - step) / max(rate, 1e-9))
            self.output.note(f"{self.unit.removesuffix('s')} {step}/{total}  {text}  {left} left")

    def rates(self, metrics: dict[str, Any]) -> str:
        """Return what the newest metrics say of the speed, besides updates; nothing for what they do not know."""
        if (acting := metrics.get("environment_steps_per_second")) and self.unit == "steps":
            self._acting = f"  {rounded(acting)} environment steps/s"
        text = f"  {rounded(tokens)} tokens/s" if (tokens := metrics.get("tokens_per_second")) else ""
        return text + (f"  {100 * mfu:.0f} % MFU" if (mfu := metrics.get("mfu")) else "") + self._acting

    def show_evaluation(self, step: int, metrics: dict[str, Any]) -> None:
        """Show what an evaluation found, if there was one; the bar keeps the return, at the highest target."""
        if "eval/return_mean" in metrics:
            planned, policy = metrics["eval/return_mean"], metrics["eval/policy_return_mean"]
            self._evaluation = f"  return {planned:.0f}"
            self.note(f"decision {step}: mean return {planned:.0f}, {policy:.0f} by the policy alone")
            return
        from gq.runs.metrics import keys_by_target

        returns = {target: metrics[key] for target, key in keys_by_target(metrics).items()}
        if not returns:
            return
        self._evaluation = f"  return {returns[max(returns)]:.0f}"
        if self._bars and self._bar is not None:
            self._bars.update(self._bar, completed=step, text=self._text + self._evaluation)
        listed = ", ".join(f"{value:.0f} at {target:g}" for target, value in returns.items())
        self.note(f"step {step}: mean return by target: {listed}")


def clock(seconds: float) -> str:
    """Return a duration as 1:02:03."""
    return str(timedelta(seconds=round(seconds)))


def rounded(number: float) -> str:
    """Return a number to three digits, as 12.3k or 4.56M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"

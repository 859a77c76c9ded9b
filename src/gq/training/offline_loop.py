"""The loop of training from a dataset, in which a learner may take several updates at once."""

from torch import Tensor

from gq.algos.supervised import SupervisedLearner
from gq.training.loop import Loop


class OfflineLoop(Loop):
    """Let the learner take as many updates as it likes to, up to the next thing that is due between two of them."""

    learner: SupervisedLearner

    def learn(self) -> tuple[dict[str, Tensor], int]:
        """Take one update, or several; return their metrics, each a scalar or [N], and how many there were."""
        return self.learner.updates(self.progress.step, self.num_undisturbed())

    def num_undisturbed(self) -> int:
        """Return how many updates there are until something is due after one."""
        step, config = self.progress.step, self.config
        periods = [config.train.log_every, config.eval.every, config.checkpoint.every]
        return min(self.num_steps() - step, *(every - step % every for every in periods if every))

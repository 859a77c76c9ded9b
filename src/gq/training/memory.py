"""What to change when training runs out of memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil

from gq.config import RunConfig, TrainConfig, UpdateConfig
from gq.errors import GqError, is_out_of_memory


@contextmanager
def memory_advice(config: RunConfig, num_processes: int) -> Iterator[None]:
    """Turn running out of memory inside the context into a GqError that says which batch to try."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(config, num_processes) from error


def out_of_memory(config: RunConfig, num_processes: int) -> GqError:
    """Return an error that proposes half as much at a time: micro-batches where there are any, else a smaller batch."""
    train = config.train
    if not isinstance(train, UpdateConfig):
        return GqError(
            f"the model and a batch of {train.batch_size} do not fit in memory",
            hint=f"start again with --set train.batch_size={max(1, train.batch_size // 2)}, or a smaller --size",
        )
    # Processes divide a batch before it is divided into micro-batches (SupervisedLearner.micro_batches).
    at_once = min(ceil(train.batch_size / train.num_micro_batches), ceil(train.batch_size / num_processes))
    message = f"the model and {at_once} windows at a time do not fit in memory"
    halves = ceil(at_once / 2)
    hints = []
    if at_once > 1:
        number = ceil(train.batch_size / halves)
        hints.append(
            f"start again with --set train.num_micro_batches={number}, which computes the batch of {train.batch_size} "
            f"{halves} at a time"
        )
    if isinstance(train, TrainConfig) and not train.checkpoint_activations:
        hints.append("resume or start again with --set train.checkpoint_activations=true")
    return GqError(message, hint=", or ".join(hints) or "choose a smaller --size")

"""PyTorch's `.pt` files of tensors, read without running what their pickle asks for.

torch.load with `weights_only=True` calls nothing but what rebuilds tensors. The settings and types that the official
checkpoints hold beside their tensors become inert stand-ins, so that neither their packages nor their code are needed.
"""

import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from gq.errors import DataError

MAX_PICKLE_BYTES = 2**24  # the pickle of a world model has about 10 kB
MAX_TUPLE_SIZE = 2**12  # with the elements of the tuples inside; those of the official checkpoints have less than 20
INERT = re.compile(
    r"omegaconf(\.\w+)+|pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path|typing\.\w+"
    r"|builtins\.(dict|list|tuple|int|long|float|str|unicode|bool)"
)
DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


class Inert:
    """Stand for an object, or for a class, that is neither built nor needed."""

    def __init__(self, *_arguments: object) -> None:
        """Take any arguments and keep none."""

    def __setstate__(self, _state: object) -> None:
        """Take any state and keep none."""


def read_torch_file(path: Path) -> Any:
    """Return what a `.pt` file holds: containers, numbers, strings and tensors on the CPU; memory: as much as the file.

    Raises:
        DataError: the file is not such an archive, truncated or damaged, or asks for more than its tensors' bytes.
    """
    try:
        _check_archive(path)
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:
        message = f"{path} is no PyTorch file, or damaged: {_reason(error)}"
        raise DataError(message, hint="fetch the file again, or name a .pt file") from error
    stand_ins: list[Any] = [(Inert, name) for name in names if INERT.fullmatch(name)]
    refused = sorted(name for name in names if not INERT.fullmatch(name))
    if refused:
        message = f"{path} asks for {ascii(refused[0])[1:-1][:100]}, which no checkpoint needs"
        raise DataError(message, hint="nothing was executed; do not trust this file, fetch it from its author")
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of malformed instructions, any
        # torch hides the reason behind advice to trust the file.
        message = f"{path} is no checkpoint, or damaged: {_reason(error.__context__ or error)}"
        raise DataError(message, hint="nothing was executed; fetch the file again, or from its author") from error


def _check_archive(path: Path) -> None:
    """Raise an error for an archive that is damaged, or whose content would be larger than the file itself."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise zipfile.BadZipFile(f"{entry.filename} is compressed")
            if entry.filename.lower().endswith("data.pkl") and entry.file_size > MAX_PICKLE_BYTES:
                raise zipfile.BadZipFile(f"{entry.filename} has more than {MAX_PICKLE_BYTES >> 20} MiB")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise zipfile.BadZipFile("its entries overlap")
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"Bad CRC-32 of {damaged}")
        for entry in entries:
            if entry.filename.lower().endswith("data.pkl"):  # torch finds names in any case
                _check_tuples(archive.read(entry))


def _check_tuples(content: bytes) -> None:
    """Raise ValueError for a tuple so large, all told, that the hash of it as a key would take too long.

    A few bytes suffice: a pair of the last pair and itself, which the memo gives, doubles the size each time. So the
    pickle's stack and memo are followed with sizes in the place of values, until where torch.load would fail.
    """
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[object, int] = {}
    for code, argument, _ in pickletools.genops(content):
        before = code.stack_before
        if code.name == "MARK":
            marks.append(len(stack))
        elif code.name.endswith("PUT"):
            memo[argument] = stack[-1] if stack else 1
        elif code.name.endswith("GET"):
            stack.append(memo.get(argument, 1))
        else:
            start = len(stack) - len(before)
            if pickletools.markobject in before and marks:
                start = marks.pop() - before.index(pickletools.markobject)
            start = max(start, 0)
            is_tuple = code.name.startswith("TUPLE") or code.name in ("REDUCE", "NEWOBJ")  # these make torch.Size
            stack[start:] = [1 + sum(stack[start:]) if is_tuple else 1] * len(code.stack_after)
            if is_tuple and stack[-1] > MAX_TUPLE_SIZE:
                raise ValueError(f"a tuple has more than {MAX_TUPLE_SIZE:,} elements")


def _reason(error: BaseException) -> str:
    """Return the first line of what an error says, without control characters, which names in a file may hold."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip("\"'")
    return ascii((words or type(error).__name__).splitlines()[0])[1:-1][:200]


def has_data(value: object) -> TypeGuard[Tensor]:
    """Whether a value is a plain tensor with data, no larger than the bytes that it is a view of.

    A file can hold a view that repeats a few bytes as terabytes, which a copy would have to allocate.
    """
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_nested:
        return False
    is_plain = value.device.type == "cpu" and value.dtype in DTYPES
    return is_plain and value.numel() * value.itemsize <= value.untyped_storage().nbytes()

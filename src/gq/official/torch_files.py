"""Read PyTorch's `.pt` files of tensors without torch.load and without running their pickle.

Such a file is an uncompressed zip archive: `NAME/data.pkl` is a pickle in which tensors refer to storages by number,
`NAME/data/NUMBER` are the storages' raw bytes. The pickle is read by the machine of `gq.data.pickle_reader`, which is
taught the few names that a state dict needs and refuses every other one.
"""

import math
import pickletools
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gq.data.pickle_reader import Global, Machine
from gq.errors import DataError

MAX_PICKLE_BYTES = 2**24  # the pickle of a world model has about 10 kB; a file cannot ask for more memory than that
STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
TENSOR = "torch._utils._rebuild_tensor_v2"
EMPTY_DICTS = ("collections.OrderedDict", "collections.defaultdict")
# What some files hold beside their tensors: sizes, devices, tensors without data, the settings of a training run.
INERT = re.compile(
    r"torch\.(Size|device|bfloat16|float\d+|u?int\d+|bool)|torch\._utils\._rebuild_meta_tensor_no_storage"
    r"|omegaconf(\.\w+)+|pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path|typing\.\w+"
    r"|(__builtin__|builtins)\.(dict|list|tuple|int|long|float|str|unicode|bool)"
)
# What zipfile raises for damaged archives.
ARCHIVE_ERRORS = (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError, struct.error)


class Inert:
    """Stand for an object that is neither built nor needed, or for its class; `name` is the class or function."""

    def __init__(self, name: str) -> None:
        self.name = name


def read_torch_file(path: Path) -> Any:
    """Return what a `.pt` file holds: dicts, lists, tuples, numbers, strings and tensors on the CPU.

    Tensors of one storage share memory, as they did when they were written. Whatever else the file holds of what
    `INERT` names comes back as an `Inert`. Memory: as much as the file.

    Raises:
        DataError: the file is no such archive, truncated or damaged, or its pickle asks for anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            storages = Storages(path, archive)
            data = storages.read_pickle()
            machine = TorchMachine(path, storages)
            return run(machine, data)
    except ARCHIVE_ERRORS as error:
        message = f"{path} is no PyTorch file, or damaged: {reason_of(error)}"
        raise DataError(message, hint="fetch the file again, or name a .pt file") from error


def reason_of(error: Exception) -> str:
    """Return what an error says, in a line without control characters, which names in a file may hold."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip("\"'")
    return ascii(words)[1:-1][:200]


def run(machine: "TorchMachine", data: bytes) -> Any:
    """Return what a pickle builds on a machine that holds nothing yet."""
    try:
        for opcode, argument, offset in pickletools.genops(data):
            machine.offset = offset or 0
            machine.step(opcode.name, argument)
        (result,) = machine.stack
    except (ValueError, IndexError, KeyError, TypeError) as error:  # what malformed instructions raise
        message = f"{machine.path}: its pickle breaks off or is damaged at byte {machine.offset}"
        raise DataError(message, hint="fetch the file again") from error
    return result


class Storages:
    """The raw storages of an open archive, each read once, when a tensor first asks for it."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self.archive = path, archive
        self.num_bytes_left = path.stat().st_size  # entries may overlap, so that all together would be far larger
        roots = [name.split("/")[0] for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            raise zipfile.BadZipFile("it has no data.pkl" if not roots else "it has more than one data.pkl")
        self.root = roots[0]
        self.flat: dict[str, Tensor] = {}  # by number, one-dimensional
        byte_order = f"{self.root}/byteorder"
        if byte_order in archive.namelist() and self.read(byte_order) != b"little":
            raise zipfile.BadZipFile("its numbers are not in little-endian order")

    def read(self, name: str) -> bytes:
        """Return an entry, checked against its CRC-32; it must be stored uncompressed, as PyTorch writes it."""
        entry = self.archive.getinfo(name)
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise zipfile.BadZipFile(f"{name} is compressed")
        self.num_bytes_left -= entry.file_size
        if self.num_bytes_left < 0:
            raise zipfile.BadZipFile(f"{name} overlaps with other entries")
        return self.archive.read(entry)

    def read_pickle(self) -> bytes:
        """Return the pickle, which must not be larger than any state dict's."""
        name = f"{self.root}/data.pkl"
        if self.archive.getinfo(name).file_size > MAX_PICKLE_BYTES:
            raise zipfile.BadZipFile(f"{name} has more than {MAX_PICKLE_BYTES >> 20} MiB")
        return self.read(name)

    def get(self, key: str, dtype: torch.dtype, num_elements: int) -> Tensor:
        """Return a storage as a tensor of one dimension, which must have the dtype and length that are asked for."""
        if key not in self.flat:
            name = f"{self.root}/data/{key}"
            try:
                raw = self.read(name)
            except ARCHIVE_ERRORS as error:
                raise DataError(f"{self.path} is damaged: {reason_of(error)}", hint="fetch the file again") from error
            if len(raw) % dtype.itemsize:
                raise ValueError(f"{name} is cut")
            # PyTorch wants memory that may be written; frombuffer refuses an empty buffer.
            self.flat[key] = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        flat = self.flat[key]
        if flat.dtype != dtype or len(flat) != num_elements:
            raise ValueError(f"storage {key} has another type or length")
        return flat


class TorchMachine(Machine):
    """A pickle machine that also knows tensors, and what may lie beside them in a checkpoint."""

    def __init__(self, path: Path, storages: Storages) -> None:
        super().__init__(path)
        self.storages = storages

    def step(self, opcode: str, argument: Any) -> None:
        """Carry out one instruction."""
        if opcode == "BINPERSID":
            (reference,) = self.take(1)
            self.stack.append(self.storage(reference))
        elif opcode == "NEWOBJ":
            kind, _ = self.take(2)
            if not isinstance(kind, Inert):
                raise self.refused("a new object")
            self.stack.append(Inert(kind.name))
        else:
            super().step(opcode, argument)

    def storage(self, reference: Any) -> Tensor:
        """Return the storage of a persistent id, whatever device it was on."""
        tag, kind, key, location, num_elements = reference
        if tag != "storage" or not isinstance(kind, Global) or kind.name not in STORAGES:
            raise self.refused("a storage of an unknown kind")
        if not isinstance(location, str) or not re.fullmatch(r"\d{1,9}", key, re.ASCII):
            raise ValueError("no storage has such a name")
        return self.storages.get(key, STORAGES[kind.name], num_elements)

    def named(self, name: str) -> Any:
        """Return the stand-in of an accepted global."""
        if name == TENSOR or name in STORAGES or name in EMPTY_DICTS:
            return Global(name)
        if INERT.fullmatch(name):
            return Inert(name)
        raise self.refused(name)

    def refused(self, what: str) -> DataError:
        """Return the error for something that has no place in a checkpoint."""
        shown = ascii(what)[1:-1][:100]  # a name in a file may hold control characters
        message = f"{self.path} asks for {shown} at byte {self.offset} of its pickle, which no checkpoint needs"
        return DataError(message, hint="nothing was executed; do not trust this file, fetch it from its author")

    def reduce(self, function: Any, arguments: Any) -> Any:
        """Return what calling an accepted global would, from its arguments alone."""
        if not isinstance(arguments, tuple):
            raise TypeError("arguments are no tuple")
        if isinstance(function, Inert):
            return Inert(function.name)
        name = function.name if isinstance(function, Global) else type(function).__name__
        if name in EMPTY_DICTS and len(arguments) == int(name.endswith("defaultdict")):
            return {}
        if name == TENSOR:
            return self.tensor(*arguments)
        raise self.refused(f"a call of {name}")

    def tensor(self, flat: Any, offset: int, shape: Any, strides: Any, *ignored: Any) -> Tensor:
        """Return a view of a storage; `ignored` are requires_grad, hooks and metadata, of no use here.

        The view must lie inside the storage and have no more elements than it, so that no file can ask for more
        memory than it has itself.
        """
        if not isinstance(flat, Tensor) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
            raise TypeError("a tensor of no storage, shape or strides")
        if any(type(number) is not int for number in (offset, *shape, *strides)) or len(shape) != len(strides):
            raise TypeError("a tensor of no numbers")
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if min((offset, *strides), default=0) < 0 or min(shape, default=1) < 1 or max(strides, default=0) > len(flat):
            raise ValueError("a tensor of negative or no size")
        if last >= len(flat) or math.prod(shape) > len(flat):
            raise ValueError("a tensor goes beyond its storage")
        return flat.as_strided(shape, strides, offset)

    def finish(self, unfinished: Any, state: Any) -> None:
        """Leave a dict or an inert object as it is: what its state would add, as versions of modules, is not needed."""
        if not isinstance(unfinished, dict | Inert):
            raise self.refused("a state for an object")
        self.stack.append(unfinished)

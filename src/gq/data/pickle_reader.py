"""Read pickled containers of numbers and NumPy arrays without running pickle.

A pickle is a program. `pickletools.genops` only splits it into instructions; this module carries out the few that
build containers, numbers, strings and arrays, and refuses a file at the first other one. Nothing is ever imported or
called on a file's behalf.
"""

import gzip
import math
import pickletools
import re
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from gq.data.hdf5 import AGAIN, FREE_BYTES, MAX_RATIO, NOT_TRUSTED, ForeignError
from gq.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
# The names that NumPy's own pickles use, in NumPy 1 (numpy.core) and 2 (numpy._core), and those of bytes in protocol 2.
GLOBALS = (
    {
        f"numpy.{core}.{name}": name.split(".")[1]
        for core in ("core", "_core")
        for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
    }
    | {
        "numpy.ndarray": "ndarray",
        "numpy.dtype": "dtype",
        "_codecs.encode": "encode",
        "collections.defaultdict": "defaultdict",
        "collections.OrderedDict": "OrderedDict",
    }
    | {f"{module}.{name}": name for module in ("builtins", "__builtin__") for name in ("bytes", "list", "dict")}
)
PLAIN_DTYPE = re.compile(r"b1|[iu][1248]|f[248]")
PUSHED = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("INT", "LONG", "FLOAT", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"),  # of the protocols 0 and 1
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLE_LENGTHS = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Global:
    """Stand for one of the names in `GLOBALS`; `name` is the short one."""

    def __init__(self, name: str) -> None:
        self.name = name


class Unfinished:
    """Stand for an array or dtype between the instruction that creates it and the BUILD that fills it."""

    def __init__(self, kind: str, code: str = "") -> None:
        self.kind = kind  # "array" or "dtype"
        self.code = code  # of a dtype, without byte order
        self.memo_keys: list[int] = []  # where it was remembered meanwhile


def load_pickle(path: Path) -> Any:
    """Return what a pickle of protocol 0 to 5 holds: dicts, lists, tuples, numbers, strings, bytes and arrays.

    It may be compressed by gzip. Arrays are read-only views of the bytes, in the dtype, shape and order of writing.

    Raises:
        DataError: the file is truncated or damaged, or asks for anything else; the message says what and where.
    """
    machine = Machine(path)
    try:
        for opcode, argument, offset in pickletools.genops(unpacked(path)):
            machine.offset = offset or 0
            machine.step(opcode.name, argument)
        (result,) = machine.stack
    except (ValueError, IndexError, KeyError, TypeError) as error:  # what malformed instructions raise
        message = f"{path}: the pickle breaks off or is damaged at byte {machine.offset}"
        raise DataError(message, hint="fetch the file again") from error
    return result


def whole_dicts(path: Path) -> list[dict[Any, Any]]:
    """Return the dicts that stand complete in a pickle before the place where it breaks off, in order."""
    machine = Machine(path)
    with suppress(DataError, ValueError, IndexError, KeyError, TypeError):
        for opcode, argument, offset in pickletools.genops(unpacked(path)):
            machine.offset = offset or 0
            machine.step(opcode.name, argument)
    found: list[Any] = []
    for value in machine.stack:
        found += value if isinstance(value, list) else [value]
    return [value for value in found if isinstance(value, dict) and value]


def unpacked(path: Path) -> bytes:
    """Return a file's bytes, decompressed if gzip compressed them.

    Raises:
        ForeignError: they are far more than data compress to.
        DataError: the compressed stream breaks off.
    """
    raw = path.read_bytes()
    if not raw.startswith(GZIP_MAGIC):
        return raw
    limit = max(FREE_BYTES, MAX_RATIO * len(raw))
    try:
        with gzip.open(path) as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the compressed file is damaged: {error}", hint=AGAIN) from error
    if len(content) > limit:
        raise ForeignError(f"{path} has {len(raw):,} bytes and holds more than {limit:,}", hint=NOT_TRUSTED)
    return content


class Machine:
    """Keep a pickle's stack and memo, and carry out one instruction at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0  # of the instruction at hand, bytes
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """Carry out one instruction."""
        if opcode in PUSHED:
            self.stack.append(argument)
        elif opcode in CONSTANTS:
            self.stack.append(CONSTANTS[opcode])
        elif opcode in TUPLE_LENGTHS:
            self.stack.append(tuple(self.take(TUPLE_LENGTHS[opcode])))
        elif opcode in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            self.remember(len(self.memo) if opcode == "MEMOIZE" else argument)
        elif opcode in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[argument])
        elif opcode in ("GLOBAL", "STACK_GLOBAL"):
            words = argument.split(" ") if opcode == "GLOBAL" else self.take(2)
            self.stack.append(self.named(".".join(words)))
        elif opcode == "REDUCE":
            function, arguments = self.take(2)
            self.stack.append(self.reduce(function, arguments))
        elif opcode == "BUILD":
            unfinished, state = self.take(2)
            self.finish(unfinished, state)
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            self.step_container(opcode)

    def step_container(self, opcode: str) -> None:
        """Carry out an instruction that starts, fills or closes a container."""
        if opcode == "MARK":
            self.marks.append(len(self.stack))
        elif opcode == "EMPTY_LIST":
            self.stack.append([])
        elif opcode == "EMPTY_DICT":
            self.stack.append({})
        elif opcode == "LIST":
            self.stack.append(self.take_marked())
        elif opcode == "DICT":
            self.set_items({}, self.take_marked())
        elif opcode == "TUPLE":
            self.stack.append(tuple(self.take_marked()))
        elif opcode in ("APPEND", "APPENDS"):
            items = self.take(1) if opcode == "APPEND" else self.take_marked()
            list.extend(self.stack[-1], items)
        elif opcode in ("SETITEM", "SETITEMS"):
            items = self.take(2) if opcode == "SETITEM" else self.take_marked()
            self.set_items(self.stack.pop(), items)
        else:
            raise self.refused(f"the instruction {opcode}")

    def set_items(self, holder: Any, items: list[Any]) -> None:
        """Put keys and values, alternately, into a dict, and that onto the stack."""
        if not all(isinstance(key, str | int) for key in items[::2]):  # nested tuples could take for ever to hash
            raise self.refused("a dict with keys that are no names")
        dict.update(holder, zip(items[::2], items[1::2], strict=True))
        self.stack.append(holder)

    def take(self, count: int) -> list[Any]:
        """Pop `count` values."""
        if count > len(self.stack) - (self.marks[-1] if self.marks else 0):
            raise IndexError("stack underflow")
        start = len(self.stack) - count
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def take_marked(self) -> list[Any]:
        """Pop the values above the last mark, and the mark."""
        values = self.take(len(self.stack) - self.marks[-1])
        self.marks.pop()
        return values

    def remember(self, key: int) -> None:
        """Put the top of the stack into the memo."""
        self.memo[key] = self.stack[-1]
        if isinstance(self.stack[-1], Unfinished):
            self.stack[-1].memo_keys.append(key)

    def named(self, name: str) -> Global:
        """Return the stand-in of an accepted global."""
        if name not in GLOBALS:
            raise self.refused(name)
        return Global(GLOBALS[name])

    def refused(self, what: str) -> DataError:
        """Return the error for something that has no place in a dataset."""
        message = f"{self.path}: the pickle asks for {what} at byte {self.offset}, which no dataset needs"
        return DataError(message, hint="nothing was executed; gq reads pickled lists of dicts of numeric NumPy arrays")

    def reduce(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """Return what calling an accepted global would, from its arguments alone."""
        name = function.name if isinstance(function, Global) else ""
        if name == "_reconstruct":  # (ndarray, (0,), b"b"): an empty array, filled by BUILD
            if not isinstance(arguments[0], Global) or arguments[0].name != "ndarray":
                raise self.refused("an array of an unknown class")
            return Unfinished("array")
        if name == "dtype":
            if not isinstance(arguments[0], str) or not PLAIN_DTYPE.fullmatch(arguments[0]):
                raise self.refused(f"an array of dtype {arguments[0]!r}")
            return Unfinished("dtype", arguments[0])
        if name == "_frombuffer":
            raw, dtype, shape, order = arguments
            return self.array(raw, dtype, shape, order)
        if name == "scalar":
            dtype, raw = arguments
            return self.array(raw, dtype, (), "C")[()]
        if name == "encode" and arguments[1] in ("latin1", "latin-1"):
            return str.encode(arguments[0], "latin-1")
        if name == "bytes" and arguments == ():
            return b""
        if name in ("defaultdict", "OrderedDict") and all(isinstance(argument, Global) for argument in arguments):
            return {}
        raise self.refused(f"a call of {name or type(function).__name__}")

    def finish(self, unfinished: Any, state: tuple[Any, ...]) -> None:
        """Replace an unfinished array or dtype, on the stack and in the memo, by the one that its state describes."""
        if not isinstance(unfinished, Unfinished):
            raise self.refused("a state for an object")
        if unfinished.kind == "dtype":
            byte_order, *fields = state[1:]
            if byte_order not in ("<", ">", "|", "=") or any(field not in (None, -1, 0) for field in fields):
                raise self.refused("a structured dtype")
            finished: Any = np.dtype(byte_order + unfinished.code)
        else:
            _, shape, dtype, is_fortran, raw = state
            finished = self.array(raw, dtype, shape, "F" if is_fortran else "C")
        self.stack.append(finished)
        for key in unfinished.memo_keys:
            self.memo[key] = finished

    def array(self, raw: bytes | bytearray, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
        """Return an array over `raw`, which must be exactly as long as dtype and shape say."""
        if not isinstance(raw, bytes | bytearray) or not isinstance(dtype, np.dtype):
            raise self.refused("an array without plain bytes or dtype")
        if order not in ("C", "F") or len(raw) != math.prod(shape) * dtype.itemsize:
            raise ValueError("bytes and shape disagree")
        return np.ndarray(shape, dtype, buffer=raw, order="F" if order == "F" else "C")

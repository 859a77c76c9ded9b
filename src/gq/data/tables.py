"""Tables of Apache Arrow: Minari's folders of them, and Parquet files with a row for each step or each episode."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gq.data.formats import minari_metadata
from gq.data.hdf5 import AGAIN, FREE_BYTES, MAX_RATIO, NOT_TRUSTED, ForeignError, check_size
from gq.data.layouts import D4RL, MINARI, PICKLE, REQUIRED, Place, Problem, Problems, Stored, find_episodes, find_part
from gq.errors import DataError, GqError

if TYPE_CHECKING:
    import pyarrow

# What LeRobot's files call their columns.
OTHER_NAMES = {
    "observation.state": "observations",
    "observation": "observations",
    "action": "actions",
    "reward": "rewards",
    "next.reward": "rewards",
    "next.done": "dones",
    "next.truncated": "truncateds",
    "episode_index": "episode_ids",
}
MINARI_COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations")


@contextmanager
def _arrow_at_hand(path: Path) -> Iterator[Any]:
    """Give pyarrow; what it raises for damaged tables becomes DataError. Raises GqError if it is not installed."""
    try:
        import pyarrow
    except ImportError as error:
        raise GqError(f"{path} holds tables of Apache Arrow", hint="to read them: pip install 'gq[arrow]'") from error
    try:
        yield pyarrow
    except (pyarrow.ArrowException, OSError) as error:  # several of the former are ValueErrors as well
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is damaged: {message[:200]}", hint=AGAIN) from error


def stored_tables(folder: Path, problems: Problems) -> Stored:
    """Read a Minari dataset in Arrow's or Parquet's format: a folder for each episode, a table in each.

    A table has one row more than its episode steps: the last one holds the final observation and nothing else.

    Raises:
        DataError: it is damaged. ForeignError: it holds far more than its files can mean.
        GqError: pyarrow is not installed.
    """
    numbers = sorted(int(child.name) for child in folder.iterdir() if child.is_dir() and child.name.isdecimal())
    episodes: dict[str, Any] = {}
    for number in numbers:
        table = _read_table(folder / str(number))
        columns: dict[str, Any] = {}
        for name in set(MINARI_COLUMNS) & set(table.column_names):
            values = _values(folder / str(number), table.column(name).combine_chunks())
            columns[name] = values if name == "observations" or isinstance(values, dict) else values[:-1]
        episodes[f"episode_{number}"] = columns
    stored = Stored(MINARI, attributes=minari_metadata(folder))
    find_episodes(stored, folder, episodes, list(episodes), problems)
    return stored


def _read_table(folder: Path) -> "pyarrow.Table":
    """Return an episode's table: its parts in order."""
    files = sorted(folder.glob("part-*"), key=lambda file: (len(file.name), file.name))
    if not files:
        raise DataError(f"{folder} holds no table", hint=AGAIN)
    with _arrow_at_hand(folder) as arrow:
        import pyarrow.parquet

        tables = []
        for file in files:
            if file.suffix == ".parquet":
                _check_parquet(file)
                table = pyarrow.parquet.ParquetFile(file).read()
            else:
                with arrow.memory_map(str(file)) as source:
                    table = arrow.ipc.open_file(source).read_all()
            if table.nbytes > max(FREE_BYTES, MAX_RATIO * file.stat().st_size):
                raise ForeignError(f"{file} says that it holds {table.nbytes:,} bytes", hint=NOT_TRUSTED)
            table.validate(full=True)
            tables.append(table)
        return arrow.concat_tables(tables)


def _check_parquet(path: Path) -> None:
    """Refuse a file of more values than its size can mean: a column of one value takes next to nothing."""
    import pyarrow.parquet

    metadata = pyarrow.parquet.read_metadata(path)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    check_size(path, [(column.num_values,) for column in columns])


def stored_parquet(path: Path, problems: Problems) -> Stored:
    """Read a Parquet table of steps, or of episodes with lists in their columns.

    Raises:
        DataError: it is damaged. ForeignError: it holds far more than its file can mean.
        UnusableError: columns that are needed are missing.
        GqError: pyarrow is not installed.
    """
    with _arrow_at_hand(path):
        import pyarrow.parquet

        _check_parquet(path)
        table = pyarrow.parquet.ParquetFile(path).read()
        table.validate(full=True)
    names = [OTHER_NAMES.get(name, name) for name in table.column_names]
    arrays = {}
    for name, column in zip(names, table.columns, strict=True):
        if name not in arrays:
            arrays[name] = column.combine_chunks()
    if "rewards" in arrays and _is_list(arrays["rewards"]):
        return _episode_rows(path, arrays, problems)
    columns = {
        name: _values(path, array)
        for name, array in arrays.items()
        if name in REQUIRED or (_is_numeric(array) and not array.null_count)
    }
    return Stored(D4RL, [find_part(Place(path, "", D4RL, problems), columns)])


def _episode_rows(path: Path, arrays: Mapping[str, Any], problems: Problems) -> Stored:
    """Look at a table with a row for each episode."""
    episodes: dict[str, Any] = {}
    for number in range(len(arrays["rewards"])):
        columns = {name: _values(path, array[number].values) for name, array in arrays.items() if _is_list(array)}
        if "terminals" not in columns and "dones" in columns:
            columns["terminals"] = columns["dones"]
        episodes[f"episode {number}"] = columns
    stored = Stored(PICKLE)
    if not episodes:
        refusal = DataError(f"{path} holds no episodes")
        problems.add(Problem("bad-shape", "the table has no rows", refusal))
    find_episodes(stored, path, episodes, list(episodes), problems)
    return stored


def _is_list(array: Any) -> bool:
    import pyarrow.types as kinds

    return bool(kinds.is_list(array.type) or kinds.is_large_list(array.type) or kinds.is_fixed_size_list(array.type))


def _is_numeric(array: Any) -> bool:
    """Whether an array holds numbers or flags, or vectors of them."""
    import pyarrow.types as kinds

    kind = array.type
    while kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        kind = kind.value_type
    return bool(kinds.is_floating(kind) or kinds.is_integer(kind) or kinds.is_boolean(kind) or kinds.is_struct(kind))


def _values(path: Path, array: Any) -> Any:
    """Return an Arrow array as NumPy's, [N] or [N, ...]; a struct's fields by their names.

    Raises:
        DataError: a value is missing, or vectors differ in length.
    """
    import pyarrow.types as kinds

    if array.null_count:
        raise DataError(f"{path}: {array.null_count:,} of {len(array):,} values of a column are missing")
    if kinds.is_struct(array.type):
        return {field.name: _values(path, array.field(index)) for index, field in enumerate(array.type)}
    if not _is_list(array):
        return array.to_numpy(zero_copy_only=False)
    inner = _values(path, array.flatten())
    if isinstance(inner, dict):
        raise DataError(f"{path}: a column holds lists of structs, which gq does not read")
    if len(array) == 0 or len(inner) % len(array):
        raise DataError(f"{path}: the vectors of a column differ in length")
    if not kinds.is_fixed_size_list(array.type) and len(set(np.diff(array.offsets.to_numpy()).tolist())) > 1:
        raise DataError(f"{path}: the vectors of a column differ in length")
    return inner.reshape(len(array), -1, *inner.shape[1:])

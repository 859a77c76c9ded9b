"""HDF5 files for `fuzz.py`: small valid ones, and what can be put into them in place of what a reader expects."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np

NUM_ROWS = 12
DTYPES = ("f2", "f4", "f8", ">f4", "i1", "i8", "u8", "?", "c8", "S3", "V5", h5py.string_dtype(), h5py.ref_dtype)
DTYPES_TOO = (h5py.vlen_dtype(np.float32), np.dtype([("a", "f4"), ("b", "i4")]), h5py.enum_dtype({"A": 0, "B": 1}))
SHAPES = (
    (),
    (0,),
    (0, 11),
    (1,),
    (NUM_ROWS,),
    (NUM_ROWS, 1),
    (NUM_ROWS, 11, 1),
    (NUM_ROWS, 0),
    (13, 11),
    (1, 1, 1, 1, 1),
)
HUGE = ((10**9, 11), (2**40, 3), (2**62,), (2**31, 2**31), (10**7,), (3 * 10**7, 11))
NAMES = ("observations", "timeouts", "next_observations", "episode_7", "episode_0")
COLUMNS = {"observations": (11,), "actions": (3,), "rewards": (), "terminals": (), "timeouts": ()}


def write_seeds(folder: Path) -> list[Path]:
    """Write small valid files: plain, compressed, of old and of new HDF5 structures, and Minari's layout."""
    paths = [folder / f"hopper-medium-v2-{name}.hdf5" for name in ("plain", "gzip", "latest")]
    for path in paths:
        options = {"chunks": True, "compression": "gzip", "shuffle": True} if "gzip" in path.name else {}
        with h5py.File(path, "w", libver="latest" if "latest" in path.name else "earliest") as root:
            root.attrs.update({"env_id": "Hopper-v5", "source": "made up", "note": np.arange(3)})
            for name, values in columns(NUM_ROWS).items():
                root.create_dataset(name, data=values, **options)
            root["infos/qpos"] = np.zeros((NUM_ROWS, 6))
    minari = folder / "minari" / "main_data.hdf5"
    minari.parent.mkdir(exist_ok=True)
    with h5py.File(minari, "w") as root:
        for number in range(3):
            group = root.create_group(f"episode_{number}")
            group.attrs["seed"] = number
            for name, values in columns(4).items():
                renamed = {"terminals": "terminations", "timeouts": "truncations"}.get(name, name)
                final = values[:1] if name == "observations" else values[:0]
                group.create_dataset(renamed, data=np.concatenate([values, final]))
    return [*paths, minari]


def columns(num_rows: int) -> dict[str, np.ndarray]:
    """Return the columns of two short episodes of Hopper's widths."""
    generator = np.random.default_rng(num_rows)
    made = {name: generator.standard_normal((num_rows, *shape)).astype(np.float32) for name, shape in COLUMNS.items()}
    flags = np.arange(num_rows) % (num_rows // 2) == num_rows // 2 - 1
    return made | {"terminals": flags, "timeouts": np.zeros(num_rows, bool)}


def change_structure(random: Random, path: Path) -> None:
    """Put one to three things into an HDF5 file that should not be there, or take some out."""
    with h5py.File(path, "r+") as root:
        for _ in range(random.choice((1, 1, 2, 3))):
            name = random.choice([*NAMES, "infos", "episode_0", "episode_1"])
            try:
                group = root[name] if random.random() < 0.6 and isinstance(root.get(name), h5py.Group) else root
                name = random.choice([*group.keys(), *NAMES])
                random.choice(CHANGES)(random, group, name)
            except (
                ValueError,
                TypeError,
                OSError,
                RuntimeError,
                KeyError,
                OverflowError,
                AttributeError,
            ):  # what HDF5 itself refuses
                continue


def replace(group: h5py.Group, name: str) -> None:
    """Take out what a name stands for."""
    if name in group or group.get(name, getlink=True) is not None:
        del group[name]


def other_dataset(random: Random, group: h5py.Group, name: str) -> None:
    """Another shape or type, filled with something."""
    replace(group, name)
    dtype, shape = random.choice((*DTYPES, *DTYPES_TOO)), random.choice(SHAPES)
    made = group.create_dataset(name, shape, dtype)
    if made.size and np.dtype(dtype).kind in "fiu":
        made[...] = np.array(random.choice((0, 1, -1, np.nan, np.inf, 1e39))).astype(np.float64)


def huge_dataset(random: Random, group: h5py.Group, name: str) -> None:
    """Far more rows than the file has bytes: nothing of them is stored, or zeros that are compressed."""
    replace(group, name)
    shape = random.choice(HUGE)
    chunks = tuple(min(length, 1_000) for length in shape)
    group.create_dataset(
        name, shape, random.choice(("f4", "f8", "?")), chunks=chunks, compression="gzip", maxshape=None
    )


def huge_everywhere(random: Random, group: h5py.Group, _: str) -> None:
    """All columns huge, with lengths that agree."""
    num_rows = random.choice((10**7, 10**9, 2**40))
    for key, shape in COLUMNS.items():
        replace(group, key)
        group.create_dataset(key, (num_rows, *shape), "f4", chunks=(1_000, *shape), compression="gzip")


def bomb(random: Random, group: h5py.Group, name: str) -> None:
    """Zeros that were compressed."""
    replace(group, name)
    data = np.zeros(random.choice((10**5, 10**6)), np.float32)
    group.create_dataset(name, data=data, compression="gzip", compression_opts=9, chunks=(10**5,))


def link(random: Random, group: h5py.Group, name: str) -> None:
    """A link to elsewhere in the file, to nothing, to itself, or to another file."""
    replace(group, name)
    other = random.choice(("plain.hdf5", "/etc/passwd", "/dev/zero", "absent.hdf5", "..", group.file.filename, "fifo"))
    inside = random.choice(("/observations", f"{group.name}/{name}", "/", "/nothing", "observations", "/infos/qpos"))
    group[name] = random.choice((h5py.SoftLink(inside), h5py.ExternalLink(other, inside)))


def hard_link(random: Random, group: h5py.Group, name: str) -> None:
    """A name for something that is there already, perhaps for the root itself."""
    found = random.choice([group.file["/"], *group.values()])
    replace(group, name)
    group[name] = found


def many_links(random: Random, group: h5py.Group, _: str) -> None:
    """The same episode under many names."""
    for number in range(random.choice((50, 300))):
        group.file[f"episode_{number + 100}"] = group.file.get("episode_0", group)


def external_storage(random: Random, group: h5py.Group, name: str) -> None:
    """A dataset whose bytes are those of another file."""
    replace(group, name)
    file = random.choice(("/etc/passwd", "/dev/zero", "absent.bin"))
    shape = random.choice(((NUM_ROWS,), (NUM_ROWS, 11), (NUM_ROWS, 3)))
    group.create_dataset(name, shape, "f4", external=[(file, 0, h5py.h5f.UNLIMITED)])


def virtual(random: Random, group: h5py.Group, name: str) -> None:
    """A dataset that is put together from other files, or from this one."""
    replace(group, name)
    rows = random.choice((NUM_ROWS, 10**9))
    layout = h5py.VirtualLayout((rows, 11), "f4")
    source = random.choice(("absent.hdf5", ".", "plain.hdf5", group.file.filename))
    layout[:NUM_ROWS] = h5py.VirtualSource(source, random.choice(("observations", name)), (NUM_ROWS, 11))
    group.create_virtual_dataset(name, layout)


def other_attribute(random: Random, group: h5py.Group, _: str) -> None:
    """An attribute of another type or shape."""
    value: Any = random.choice(
        (np.zeros(0), np.zeros((2, 3)), b"\xff\xfe", "a\nb\nc\nd\ne", np.nan, 2**63, h5py.Empty("f4"))
    )
    key = random.choice(("env_id", "source", "seed", "note"))
    if random.random() < 0.5:
        group.attrs[key] = value
    else:
        group.attrs.create(key, None, random.choice(((), (3,))), random.choice((*DTYPES, *DTYPES_TOO)))


def group_instead(random: Random, group: h5py.Group, name: str) -> None:
    """A group, or a named type, where a dataset should be, or the other way round."""
    replace(group, name)
    if random.random() < 0.5:
        group.create_group(f"{name}/a/b/c")
    else:
        group[name] = np.dtype("f4")


def nothing(_: Random, group: h5py.Group, name: str) -> None:
    """Less."""
    replace(group, name)


CHANGES: tuple[Callable[[Random, h5py.Group, str], None], ...] = (
    *(other_dataset, other_dataset, huge_dataset, huge_everywhere, bomb, link, link, hard_link, many_links),
    *(external_storage, virtual, other_attribute, other_attribute, group_instead, nothing),
)

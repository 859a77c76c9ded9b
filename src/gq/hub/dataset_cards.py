"""A dataset as it is put up: its file, and a card of what was counted in it and what it records of its origin."""

from pathlib import Path

import numpy as np

from gq.data.layouts import starts_as_hdf5
from gq.data.reading import data_file
from gq.data.trajectories import Trajectories
from gq.datasets import names as registry
from gq.datasets.loading import canonical_name, load_dataset
from gq.errors import DataError
from gq.files import sha256
from gq.hub.files import Upload, without_paths
from gq.runs.card import CARD, front_matter, marked

SIZES = ((10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
LICENCES = {"CC BY 4.0": "cc-by-4.0", "MIT": "mit"}
ORIGIN = ("source", "source_url", "source_sha256", "licence", "policy", "noise", "mujoco", "gymnasium", "gq")


def dataset_uploads(name: str) -> tuple[str, list[Upload]]:
    """Return a name for the repository of a dataset and the files to put up: one HDF5 file and a card.

    Raises:
        UsageError: there is no such dataset.
        DataError: it is damaged, or a pickle.
    """
    trajectories = load_dataset(name)  # it is read whole, so that nothing damaged goes up
    found = canonical_name(name)
    file = data_file(Path(found) if Path(found).is_absolute() else registry.resolve(found).path)
    if not starts_as_hdf5(file):
        hint = "make an HDF5 file of it: gq repair FILE --apply -o data.hdf5"
        raise DataError(f"{file} is a pickle, which nobody should have to open", hint=hint)
    is_file = Path(found).is_absolute()
    label = Path(found).stem if is_file else found.removeprefix("builtin/").removeprefix("hf://").replace("/", "-")
    metadata = file.with_name("metadata.json")
    uploads = [Upload(f"{label}.hdf5", file)]
    if file.name == "main_data.hdf5" and metadata.is_file():
        uploads = [Upload("data/main_data.hdf5", file), Upload("data/metadata.json", metadata)]
    card = dataset_card(label, trajectories, file).encode()
    return label, [Upload(CARD, card), *uploads]


def dataset_card(name: str, data: Trajectories, file: Path) -> str:
    """Return the card of a dataset."""
    returns, lengths = data.returns, data.lengths
    origin = {key: value for key, value in data.attributes.items() if key in ORIGIN and value not in (None, "")}
    size = next((text for limit, text in SIZES if data.num_transitions < limit), "n>10M")
    head = {
        "tags": ["reinforcement-learning", "offline-rl", "gq", "mujoco", *([data.task] if data.task else [])],
        "task_categories": ["reinforcement-learning"],
        "size_categories": [size],
    }
    if licence := LICENCES.get(str(origin.get("licence"))):
        head["license"] = licence  # type: ignore[assignment]
    low, middle, high = np.percentile(returns, [10, 50, 90])
    lines = [
        *front_matter(head),
        "",
        f"# {name}",
        "",
        f"Episodes of {data.task or 'an unnamed task'} for offline reinforcement learning, counted in the file:",
        "",
        "| | |",
        "|---|---|",
        f"| transitions | {data.num_transitions:,} |",
        f"| episodes | {data.num_episodes:,}, {int(data.terminals.sum()):,} of them terminated |",
        f"| return | {returns.mean():.1f} ± {returns.std():.1f} (p10 {low:.1f}, p50 {middle:.1f}, p90 {high:.1f}) |",
        f"| length | {lengths.mean():.1f}, at most {lengths.max():,} |",
        f"| observations, actions | {data.observations.shape[1]}, {data.actions.shape[1]} |",
        f"| sha256 of the file | {sha256(file)} |",
        *(f"| {key} | {value} |" for key, value in without_paths(origin).items()),
        "",
        "    gq download hf://ORG/NAME",
        "    gq train dt --dataset hf://ORG/NAME",
    ]
    return marked("\n".join(lines))

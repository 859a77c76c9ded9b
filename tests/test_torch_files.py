"""Reading `.pt` files without running what their pickle asks for."""

import os
import pathlib
import re
import sys
import types
import typing
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gq.errors import DataError
from gq.official.torch_files import DTYPES, MAX_PICKLE_BYTES, Inert, has_data, read_torch_file

MALICIOUS = Path(__file__).parents[1].parent / "shared" / "fixtures" / "malicious_checkpoint.pt"
PROTOCOLS = [2, 3, 4, 5]
HYPOTHESIS = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def content() -> dict:
    """Return tensors of every accepted type and of awkward strides, in containers as checkpoints have them."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    model = OrderedDict(
        weight=base,
        transposed=base.t(),
        columns=base[1:, ::2],
        one_row=base[2:3],
        expanded=torch.tensor([1.0, 2.0]).expand(1, 2),
        scalar=torch.tensor(-10),
    )
    for dtype in DTYPES:
        model[str(dtype)] = (base * 3).to(dtype)
    return {"model": model, "numbers": [1, -1, 2**40, 0.5, None, True, ("text", {"a": (1, 2, 3, 4)})]}


def saved(path: Path, value: object, **options: typing.Any) -> Path:
    torch.save(value, path, **options)
    return path


def archive_of(path: Path, pickle: bytes, storages: dict[str, bytes] | None = None, compression: int = 0) -> Path:
    """Write an archive as PyTorch does, with a pickle and raw storages of one's own."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("file/data.pkl", pickle)
        archive.writestr("file/byteorder", b"little")
        archive.writestr("file/version", b"3\n")
        for key, raw in (storages or {}).items():
            archive.writestr(f"file/data/{key}", raw)
    return path


def pickle_of(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """Return the pickle and the raw storages of a file."""
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        names = [name for name in archive.namelist() if name.startswith(f"{root}/data/")]
        return archive.read(f"{root}/data.pkl"), {name.rpartition("/")[2]: archive.read(name) for name in names}


def text(word: str) -> bytes:
    return b"X" + len(word).to_bytes(4, "little") + word.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tensor_pickle(offset: int, shape: list[int], strides: list[int], num_elements: int = 4, key: str = "0") -> bytes:
    """Return a pickle of one float32 tensor over a storage."""

    def numbers(values: list[int]) -> bytes:
        return b"(" + b"".join(number(value) for value in values) + b"t"

    storage = text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(num_elements)
    arguments = b"((" + storage + b"tQ" + number(offset) + numbers(shape) + numbers(strides)
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"\x89)tR."


def assert_same(found: object, expected: object) -> None:
    """Compare nested containers, with dtype, shape, strides and values of tensors."""
    if isinstance(expected, dict):
        assert isinstance(found, dict)
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride())
        assert torch.equal(found, expected)
    else:
        assert type(found) is type(expected)
        assert found == expected


def test_what_torch_saves_is_read_exactly(tmp_path):
    path = saved(tmp_path / "all.pt", content())
    found = read_torch_file(path)
    assert_same(found, content())
    assert_same(found, torch.load(path, weights_only=False))


def test_tensors_of_one_storage_share_memory_and_may_be_written(tmp_path):
    model = read_torch_file(saved(tmp_path / "all.pt", content()))["model"]
    model["weight"][0, 1] = 7.0
    assert model["transposed"][1, 0] == 7.0


def test_a_module_keeps_its_weights_without_its_versions(tmp_path):
    state = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)).state_dict()
    assert state._metadata
    assert_same(read_torch_file(saved(tmp_path / "module.pt", state)), dict(state))


def test_what_is_not_a_plain_tensor_with_bytes_of_its_own_has_no_data(tmp_path):
    value = {
        "meta": torch.empty(3, 2, device="meta"),
        "size": torch.Size([5]),
        "device": torch.device("cuda", 0),
        "sparse": torch.eye(3).to_sparse(),
        "complex": torch.ones(2, dtype=torch.complex64),
        "repeated": torch.ones(1).expand(2**40),
    }
    found = read_torch_file(saved(tmp_path / "other.pt", value))
    assert [key for key in found if has_data(found[key])] == []
    assert has_data(read_torch_file(saved(tmp_path / "plain.pt", torch.ones(3).expand(1, 3))))


def test_settings_beside_the_tensors_are_inert_and_their_modules_not_imported(tmp_path, monkeypatch):
    module = types.ModuleType("omegaconf.dictconfig")

    class DictConfig:
        def __setstate__(self, state: dict) -> None:
            raise AssertionError("run")

    DictConfig.__module__, DictConfig.__qualname__ = module.__name__, "DictConfig"
    module.DictConfig = DictConfig
    settings = DictConfig()
    settings.work_dir, settings.kinds = pathlib.PurePosixPath("a/b"), [typing.Any, int, dict]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
        patch.setitem(sys.modules, "omegaconf.dictconfig", module)
        path = saved(tmp_path / "settings.pt", {"model": {"w": torch.ones(2)}, "cfg": settings})
    found = read_torch_file(path)
    assert isinstance(found["cfg"], Inert)
    assert torch.equal(found["model"]["w"], torch.ones(2))


# --- what must not run ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("all_fixtures")
def test_the_malicious_checkpoint_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"asks for io\.open, which no checkpoint needs") as caught:
        read_torch_file(MALICIOUS)
    assert "nothing was executed" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
    torch.load(MALICIOUS, map_location="cpu", weights_only=False)  # it does work where pickle is trusted
    assert [path.name for path in tmp_path.iterdir()] == ["canary"]


class Payload:
    """Pickle as a call of os.system that would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_command_is_refused_and_never_run(tmp_path, protocol):
    witness = tmp_path / "witness"
    path = saved(tmp_path / "evil.pt", {"w": torch.ones(2), "x": Payload(witness)}, pickle_protocol=protocol)
    with pytest.raises(DataError) as caught:
        read_torch_file(path)
    if protocol == 2:  # what PyTorch writes; others are not read at all
        assert re.search(r"asks for (posix|nt)\.system", str(caught.value))
    assert caught.value.hint
    assert not witness.exists()
    torch.load(path, weights_only=False)
    assert witness.exists()


REFUSED = {
    "asks for builtins.eval": b"cbuiltins\neval\n" + text("1") + b"\x85R",
    "asks for builtins.getattr": b"c__builtin__\ngetattr\n",
    "asks for torch.load": b"ctorch\nload\n",
    "asks for torch.hub.load": b"ctorch.hub\nload\n",
    "asks for torch.storage._load_from_bytes": b"ctorch.storage\n_load_from_bytes\n",
    "asks for typing.os.system": b"ctyping\nos.system\n",
    "asks for pathlib.os.system": b"cpathlib\nos.system\n",
    "asks for omegaconf.,": b"comegaconf\n\n",
    "asks for numpy.dtype": b"cnumpy\ndtype\n",
    r"asks for posix.\x1b[2J": b"cposix\n\x1b[2J\n",
    "asks for gq.cli.main": b"cgq.cli\nmain\n",
    "Unsupported operand 105": b"(ios\nsystem\n",
    "Unsupported operand 111": b"(ctyping\nAny\no",
    "Unsupported operand 130": b"\x82\x01",
    "Unsupported operand 80": b"Pcpu\n",
    "Trying to call reduce for unrecognized function": b"})R",
    "Can only build": b"]}b",
    "Only persistent_load of storage": b"(" + text("os") + text("0") + text("cpu") + b"K\x01tQ",
}


@pytest.mark.parametrize("what", REFUSED)
def test_everything_else_is_refused_with_the_reason(tmp_path, what):
    path = archive_of(tmp_path / "other.pt", b"\x80\x02" + REFUSED[what] + b".")
    with pytest.raises(DataError) as caught:
        read_torch_file(path)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("doubled", [b"h\x00\x86q\x00", b"(h\x00h\x00tq\x00", b"h\x00h\x00\x87r\x00\x00\x00\x00"])
def test_a_key_that_would_hash_for_ever_is_refused_at_once(tmp_path, doubled):
    # A tuple of the last tuple and itself, 200 times over.
    path = archive_of(tmp_path / "laughs.pt", b"\x80\x02})q\x00" + doubled * 200 + b"K\x01s.")
    with pytest.raises(DataError, match="a tuple has more than 4,096 elements"):
        read_torch_file(path)


# --- what must not be read beyond -------------------------------------------------------------------------------------


def test_a_tensor_is_a_view_within_its_storage(tmp_path):
    raw = torch.arange(4.0).numpy().tobytes()
    within = [
        (0, [4], [1]),
        (3, [], []),
        (0, [2, 2], [2, 1]),
        (1, [2, 2], [1, 1]),
        (0, [2, 2], [0, 1]),
        (2, [1, 2], [4, 1]),
    ]
    beyond = [
        *((1, [4], [1]), (4, [], []), (-1, [2], [1]), (0, [2], [-1]), (0, [3], [2]), (0, [2, 3], [2, 1])),
        *((0, [2**40], [1]), (0, [-1], [1]), (0, [1], [2**70]), (2**70, [1], [1]), (0, [2], [1, 1])),
    ]
    for offset, shape, strides in within:
        path = archive_of(tmp_path / "view.pt", tensor_pickle(offset, shape, strides), {"0": raw})
        assert torch.equal(read_torch_file(path), torch.arange(4.0).as_strided(shape, strides, offset))
    for offset, shape, strides in beyond:
        path = archive_of(tmp_path / "view.pt", tensor_pickle(offset, shape, strides), {"0": raw})
        with pytest.raises(DataError, match="is no checkpoint, or damaged"):
            read_torch_file(path)


@pytest.mark.parametrize(
    ("pickle", "storages", "says"),
    [
        (tensor_pickle(0, [4], [1]), {}, "failed locating file data/0"),
        (tensor_pickle(0, [4], [1]), {"0": bytes(12)}, "record size (12 bytes) does not match"),
        (tensor_pickle(0, [3], [1]), {"0": bytes(15)}, "record size (15 bytes) does not match"),
        (tensor_pickle(0, [4], [1], num_elements=5), {"0": bytes(16)}, "record size (16 bytes) does not match"),
        (tensor_pickle(0, [4], [1], key="../data/0"), {"0": bytes(16)}, "failed locating file data/../data/0"),
        (tensor_pickle(0, [4], [1], key="/etc/passwd"), {"0": bytes(16)}, "failed locating file data//etc/passwd"),
        (b"\x80\x02" + b" " * MAX_PICKLE_BYTES, {}, "more than 16 MiB"),
        (b"\x80\x02.", {}, "or damaged"),
        (b"", {}, "or damaged: pickle exhausted before seeing STOP"),
    ],
)
def test_an_archive_that_does_not_hold_what_it_says_is_refused(tmp_path, pickle, storages, says):
    with pytest.raises(DataError) as caught:
        read_torch_file(archive_of(tmp_path / "bad.pt", pickle, storages))
    assert says in str(caught.value)
    assert "bad.pt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_archives_of_pytorch_are_refused(tmp_path):
    good = saved(tmp_path / "good.pt", {"w": torch.ones(4)})
    pickle, storages = pickle_of(good)
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("<html>not found</html>")
    torch.save({"w": torch.ones(4)}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    archive_of(tmp_path / "compressed.pt", pickle, storages, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("a/readme", b"")
    reasons = {
        "empty": "not a zip file",
        "text": "not a zip file",
        "legacy": "not a zip file",
        "compressed": "is compressed",
        "other": "Expected hasRecord",
        "absent": "No such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(DataError, match=f"{name}.pt is no PyTorch file, or damaged: .*{reason}"):
            read_torch_file(tmp_path / f"{name}.pt")


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    pickle = b"\x80\x02(" + b"".join(
        tensor_pickle(0, [1], [1], size, key)[2:-1] for key, size in (("1", 2048), ("0", 2064))
    )
    path = archive_of(tmp_path / "overlap.pt", pickle + b"t.", {"0": b"", "1": bytes(8192)})
    data = path.read_bytes()
    with zipfile.ZipFile(path, "a") as archive:
        outer, inner = (archive.getinfo(f"file/data/{key}") for key in "01")
        outer.file_size = outer.compress_size = 8256
        start = inner.header_offset  # the outer entry's bytes are the inner one's header, name and bytes
        outer.CRC = zlib.crc32(data[start : start + 8256])
        archive._didModify = True
    with pytest.raises(DataError, match="its entries overlap"):
        read_torch_file(path)


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_truncated_file_is_refused(tmp_path):
    data = saved(tmp_path / "whole.pt", content()).read_bytes()
    path = tmp_path / "short.pt"
    for length in (0, 1, 100, len(data) // 2, len(data) - 200, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"short\.pt"):
            read_torch_file(path)


@HYPOTHESIS
@given(bit=st.integers(0, 2**20))
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path, bit):
    whole = tmp_path / "whole.pt"
    data = bytearray((whole if whole.exists() else saved(whole, content())).read_bytes())
    bit %= 8 * len(data)
    data[bit // 8] ^= 1 << bit % 8
    path = tmp_path / "flipped.pt"
    path.write_bytes(data)
    with suppress(DataError):
        assert_same(read_torch_file(path), content())


def test_a_flipped_bit_of_a_weight_is_noticed(tmp_path):
    path = saved(tmp_path / "weights.pt", {"w": torch.full((64,), 1.5)})
    data = path.read_bytes()
    place = data.index(torch.full((64,), 1.5).numpy().tobytes())
    path.write_bytes(data[: place + 40] + bytes([data[place + 40] ^ 1]) + data[place + 41 :])
    with pytest.raises(DataError, match="Bad CRC-32"):
        read_torch_file(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pickletools")
@HYPOTHESIS
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6))
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_changed_pickle_ends_in_a_value_or_a_data_error(tmp_path, protocol, changes):
    whole = tmp_path / "whole.pt"
    pickle, storages = pickle_of(whole if whole.exists() else saved(whole, content(), pickle_protocol=protocol))
    changed = bytearray(pickle)
    for position, value in changes:
        changed[position % len(changed)] = value
    with suppress(DataError):
        read_torch_file(archive_of(tmp_path / "changed.pt", bytes(changed), storages))


WORDS = st.sampled_from(
    [
        *(b"(", b")", b"}", b"]", b"N", b"\x88", b"K\x01", b"K\x04", number(-1), number(2**70), b"0", b"2"),
        *(b"s", b"u", b"e", b"a", b"t", b"\x85", b"\x86", b"\x87", b"R", b"b", b"Q", b"\x81", b"\x94", b"h\x00"),
        *(text("storage"), text("0"), text("cpu"), text("os"), text("system"), b"\x93", b"q\x00"),
        *(b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"),
        *(b"ctyping\nAny\n", b"cposix\nsystem\n", b"cbuiltins\neval\n", tensor_pickle(0, [2, 2], [2, 1])[2:-1]),
    ]
)


WATCHED = {
    "import",
    "exec",
    "compile",
    "pickle.find_class",
    "os.system",
    "os.exec",
    "subprocess.Popen",
    "socket.connect",
}


@pytest.fixture(scope="module")
def watch() -> Callable[[Callable[[], object]], list[str]]:
    """Return a function that calls another one and tells what it imported, ran or compiled."""
    events: list[str] = []
    state = {"watching": False}

    def audit(event: str, _: tuple) -> None:  # it stays for as long as the process, so it is off between calls
        if state["watching"] and event in WATCHED:
            events.append(event)

    sys.addaudithook(audit)

    def call(function: Callable[[], object]) -> list[str]:
        events.clear()
        state["watching"] = True
        with suppress(DataError):
            function()
        state["watching"] = False
        return list(events)

    return call


def test_the_watch_sees_a_trusted_pickle_run(tmp_path, watch):
    path = saved(tmp_path / "evil.pt", Payload(tmp_path / "witness"))
    assert watch(lambda: torch.load(path, weights_only=False)) == ["pickle.find_class", "os.system"]
    assert watch(lambda: read_torch_file(path)) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pickletools")
@HYPOTHESIS
@given(words=st.lists(WORDS, max_size=30))
def test_any_program_ends_in_a_value_or_a_data_error_and_runs_nothing(tmp_path, watch, words):
    path = archive_of(tmp_path / "program.pt", b"\x80\x02" + b"".join(words) + b".", {"0": bytes(16)})
    watch(lambda: read_torch_file(path))  # torch itself imports some of its modules when they are first needed
    assert watch(lambda: read_torch_file(path)) == []

"""Reading pickles without running them."""

import pickle
import pickletools
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gq.data.pickle_reader import load_pickle
from gq.errors import DataError

SHARED_PICKLE = Path(__file__).parents[1].parent / "shared" / "data" / "hopper-medium-20ep.pkl"
PROTOCOLS = [2, 3, 4, 5]


def episodes() -> list[dict]:
    """Return two episodes that use every array layout a dataset may have."""
    generator = np.random.default_rng(0)
    return [
        {
            "observations": generator.standard_normal((length, 3)).astype(np.float32),
            "next_observations": np.asfortranarray(generator.standard_normal((length, 3))),
            "actions": generator.standard_normal((length, 4)).astype(">f8")[:, ::2],
            "rewards": generator.standard_normal(length),
            "terminals": np.arange(length) == length - 1,
            "empty": np.zeros((0, 2), np.int16),
            "mean": np.float64(length),
            "info": ("text", b"bytes \xff", b"", -1, 300, 70_000, 2**40, 0.5, None, True, {"a": [1, (2,)]}),
        }
        for length in (5, 7)
    ]


def assert_same(found: object, expected: object) -> None:
    """Compare nested containers, with dtype, shape, order and values of arrays."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, np.ndarray):
        assert found.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")  # pickle swaps to native
        assert found.flags.f_contiguous == expected.flags.f_contiguous
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


# The pure Python pickler memoises differently; its protocol 5 fails on an empty array (an assertion in CPython).
@pytest.mark.parametrize(
    ("pickler", "protocol"),
    [(pickle.dumps, protocol) for protocol in PROTOCOLS] + [(pickle._dumps, protocol) for protocol in (2, 3, 4)],
)
def test_arrays_and_containers_equal_what_pickle_reads(tmp_path, protocol, pickler):
    data = pickler(episodes(), protocol=protocol)
    path = tmp_path / "episodes.pkl"
    for form in (data, pickletools.optimize(data)):
        path.write_bytes(form)
        assert_same(load_pickle(path), pickle.loads(form))


def test_old_and_new_numpy_module_names_read_alike(tmp_path):
    data = pickle.dumps(episodes(), protocol=2)
    new, old = (b"numpy._core", b"numpy.core") if b"numpy._core" in data else (b"numpy.core", b"numpy._core")
    path = tmp_path / "episodes.pkl"
    path.write_bytes(data.replace(new, old))
    assert_same(load_pickle(path), episodes())


def test_an_array_that_appears_twice_is_read_both_times(tmp_path):
    array = np.arange(6.0).reshape(2, 3)
    path = tmp_path / "twice.pkl"
    for protocol in PROTOCOLS:
        path.write_bytes(pickle.dumps([array, array, {"again": array}], protocol=protocol))
        first, second, third = load_pickle(path)
        np.testing.assert_array_equal(first, array)
        assert second is first
        assert third["again"] is first


class Payload:
    """Pickle as a call of os.system that would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        import os

        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_command_is_refused_by_name_and_never_run(tmp_path, protocol):
    witness, path = tmp_path / "witness", tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps([{"observations": Payload(witness)}], protocol=protocol))
    with pytest.raises(DataError, match=r"asks for (posix|nt)\.system at byte \d+") as caught:
        load_pickle(path)
    assert not witness.exists()
    assert "nothing was executed" in caught.value.hint
    pickle.loads(path.read_bytes())  # the payload does work where pickle is trusted
    assert witness.exists()


def test_other_callables_objects_and_dtypes_are_refused(tmp_path):
    path = tmp_path / "other.pkl"
    structured = np.zeros(2, np.dtype([("a", "f4"), ("b", "i4")]))
    refused = {
        "builtins.eval": b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        "collections.Counter": pickle.dumps(Counter(a=1), protocol=4),
        "an array of dtype 'O8'": pickle.dumps(np.array([{}, None]), protocol=4),
        "an array of dtype 'V8'": pickle.dumps(structured, protocol=4),
        "an array of dtype 'U3'": pickle.dumps(np.array(["abc"]), protocol=4),
        "an array of dtype 'M8'": pickle.dumps(np.array(["2020-01-01"], "M8[D]"), protocol=4),
        "the instruction EMPTY_SET": pickle.dumps({1, 2}, protocol=4),
        "the instruction BINPERSID": b"\x80\x04K\x01Q.",
        "a call of ndarray": b"\x80\x02cnumpy\nndarray\nK\x03\x85R.",
        "a call of int": b"\x80\x02K\x01)R.",
        "a state for an object": b"\x80\x02}}b.",
    }
    for named, data in refused.items():
        path.write_bytes(data)
        with pytest.raises(DataError, match=f"asks for {named}"):
            load_pickle(path)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_truncated_file_is_refused(tmp_path, protocol):
    data = pickle.dumps(episodes(), protocol=protocol)
    path = tmp_path / "short.pkl"
    for length in (0, 1, 2, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"short\.pkl: the pickle breaks off or is damaged at byte \d+"):
            load_pickle(path)


def test_array_bytes_that_do_not_fit_the_shape_are_refused(tmp_path):
    path = tmp_path / "shape.pkl"
    data = pickle.dumps(np.zeros((3, 1000), np.float32), protocol=4)
    path.write_bytes(data.replace(b"K\x03M\xe8\x03\x86", b"K\x04M\xe8\x03\x86"))
    assert path.read_bytes() != data
    with pytest.raises(DataError, match="damaged"):
        load_pickle(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pickletools")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
@pytest.mark.parametrize("protocol", [2, 5])
def test_any_damage_ends_in_a_value_or_a_data_error(tmp_path, protocol, changes):
    data = bytearray(pickle.dumps(episodes(), protocol=protocol))
    for position, value in changes:
        data[position % len(data)] = value
    path = tmp_path / "damaged.pkl"
    path.write_bytes(data)
    with suppress(DataError):
        load_pickle(path)


@pytest.mark.usefixtures("shared_data")
def test_the_shared_pickle_equals_pickle():
    found = load_pickle(SHARED_PICKLE)
    assert_same(found, pickle.loads(SHARED_PICKLE.read_bytes()))
    assert len(found) == 20

"""The doors between the rooms: who may import whom, what is loaded at the start, how large anything may grow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
FILES = sorted((SOURCE / "gq").rglob("*.py"))

# A module may import from its own floor and from those below it. The front house comes first; it imports no annex.
FRONT = [
    {"errors", "signals", "threads"},
    {"files", "paths", "settings"},
    {"models", "envs", "devices"},
    {"config", "data"},
    {"presets", "algos", "planning"},
    {"rollouts"},
    {"runs"},
    {"policies"},
    {"training"},
]
ANNEXES = [
    {"costs", "video"},
    {"datasets", "learn", "collecting", "repair", "results", "speculation", "official", "hub", "doctor"},
    {"rendering", "sweeps"},
    {"benchmark"},
]
FLOORS = [*FRONT, *ANNEXES, {"cli", "__main__"}]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
EXCEPTIONS: set[str] = set()  # doors that are still to be closed
KNOWN_CIRCLES: set[tuple[str, ...]] = set()
HEAVY = {"torch", "mujoco", "gymnasium", "h5py"}
FACADE = "gq"  # gq/__init__.py names everything, lazily
MAX_FILE_LINES, MAX_FUNCTION_LINES = 450, 90


def module_name(path: Path) -> str:
    """Return the dotted name below gq: `data.formats`, `cli`, or `gq` for the package itself."""
    parts = path.relative_to(SOURCE / "gq").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or FACADE


def imports_in(source: str) -> Iterator[str]:
    """Yield what a module imports of gq, in functions and for type checking too, as dotted names below gq."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.removeprefix("gq.") for name in names if name.startswith("gq."))


def all_sources() -> dict[str, str]:
    return {module_name(path): path.read_text(encoding="utf-8") for path in FILES}


def imported_modules(sources: dict[str, str]) -> dict[str, set[str]]:
    """Return the modules that each module imports, names out of a module resolved to the module."""
    known = {module_name(path) for path in FILES} | sources.keys()
    graph = {}
    for module, source in sources.items():
        found = set()
        for name in imports_in(source):
            found.add(name if name in known else name.rpartition(".")[0] or name)
        graph[module] = (found & known) - {module, FACADE}
    return graph


def doors(sources: dict[str, str]) -> list[str]:
    """Return the imports that go up, or from the front house into an annex, as `importer -> imported`."""
    graph = imported_modules({name: source for name, source in sources.items() if name != FACADE})
    wrong = []
    for module, found in graph.items():
        room = module.split(".")[0]
        for imported in sorted(found):
            target = imported.split(".")[0]
            if FLOOR_OF[target] > FLOOR_OF[room] or (target == "cli" and room not in ("cli", "__main__")):
                wrong.append(f"{module} -> {imported}")
    return [door for door in wrong if door not in EXCEPTIONS]


def circles(sources: dict[str, str]) -> list[tuple[str, ...]]:
    """Return the groups of modules that import each other in a circle, in functions too."""
    graph = imported_modules({name: source for name, source in sources.items() if name != FACADE})
    reached: dict[str, set[str]] = {}
    for module in graph:
        seen: set[str] = set()
        waiting = list(graph[module])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting.extend(graph.get(name, ()))
        reached[module] = seen
    groups = {
        tuple(sorted({module} | {other for other in reached[module] if module in reached.get(other, set())}))
        for module in graph
        if module in reached[module]
    }
    return sorted(groups)


def test_every_module_has_its_floor() -> None:
    rooms = {module_name(path).split(".")[0] for path in FILES} - {FACADE}
    assert rooms - FLOOR_OF.keys() == set()
    assert len(rooms) > 12


def test_no_door_that_should_not_be_there() -> None:
    assert doors(all_sources()) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert set(circles(all_sources())) - KNOWN_CIRCLES == set()


def test_a_circle_is_found() -> None:
    sources = {
        "a": "from gq.b import c",
        "b": "def f():\n    import gq.d",
        "d": "from gq import a",
        "e": "from gq import a",
    }
    assert circles(sources) == [("a", "b", "d")]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("data.windows", "from gq.algos.dt import DTPolicy"),
        ("data.windows", "from gq.datasets.cache import cached"),
        ("runs.metrics", "from gq import costs"),
        ("models.mlp", "import gq.data.windows"),
        ("models.mlp", "from gq.data import windows"),
        ("errors", "from gq.files import sha256"),
        ("errors", "from gq.config import RunConfig"),
        ("config", "from gq.presets import dt"),
        ("rollouts.episodes", "from gq.policies.loading import load_run"),
        ("algos.dt", "def f():\n    from gq.training.session import Session"),
        ("training.session", "if TYPE_CHECKING:\n    from gq.rendering import render"),
        ("rendering", "from gq.cli.output import Output"),
        ("paths", "from gq.envs.tasks import TASKS"),
    ],
)
def test_a_wrong_door_is_found(module: str, line: str) -> None:
    assert len(doors({module: line})) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("data.reading", "from gq.envs.tasks import resolve_task"),
        ("config", "from gq.models.config import ModelConfig"),
        ("data.windows", "from gq.models.config import ModelConfig"),
        ("envs.make", "from gq.models import config"),
        ("cli.train", "from gq.training.offline import train"),
        ("cli.train", "from gq import presets, threads"),
        ("__main__", "from gq.cli import main"),
        ("models.mlp", "from gq.errors import UsageError\nimport torch"),
    ],
)
def test_a_right_door_is_left_alone(module: str, line: str) -> None:
    assert doors({module: line}) == []


# --- the start --------------------------------------------------------------------------------------------------------


def modules_loaded_by(statement: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter imports for a statement."""
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-c",
        f"import sys; sys.path.insert(0, {str(SOURCE)!r}); {statement}",
    ]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-2000:]
    lines = [line for line in child.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


@pytest.mark.parametrize(
    "statement", ["import gq", "import gq.cli", "import gq.cli; gq.cli.app", "import gq.config, gq.presets"]
)
def test_nothing_heavy_is_loaded_at_the_start(statement: str) -> None:
    loaded = modules_loaded_by(statement)
    assert "gq" in loaded
    assert loaded & HEAVY == set()


def test_heavy_modules_would_be_noticed() -> None:
    assert "h5py" in modules_loaded_by("import h5py, gq")


def test_every_public_name_is_there() -> None:
    assert "torch" in modules_loaded_by("import gq; [getattr(gq, name) for name in gq.__all__]")


# --- habits -----------------------------------------------------------------------------------------------------------


def too_long(source: str) -> list[str]:
    """Return the functions of a module, or "the file", that have more lines than a reader can see at once."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    found = [node.name for node in nodes if (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES]
    return found + ["the file"] * (len(source.splitlines()) > MAX_FILE_LINES)


def test_files_and_their_functions_are_short() -> None:
    """What else is a habit is Ruff's to check: prints, docstrings, banned modules, numbers of arguments."""
    assert {name: found for name, source in all_sources().items() if (found := too_long(source))} == {}


def test_what_is_too_long_is_found() -> None:
    assert too_long("def f():\n" + "    pass\n" * 90) == ["f"]
    assert too_long("def f():\n" + "    pass\n" * 89) == []
    assert too_long("x = 1\n" * 451) == ["the file"]

"""The doors between the rooms: who may import whom, what is loaded at the start, how large anything may grow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
FILES = sorted((SOURCE / "gq").rglob("*.py"))

# A module may import from its own floor and from those below it.
FLOORS = [
    {"errors", "files", "threads", "versions", "parsing", "paths", "models", "envs"},
    {"config", "data", "repairing", "parameters", "devices", "predictions", "video"},
    {"presets", "algos", "evaluation", "planning"},
    {"engine"},
    {"rendering", "collecting", "plotting", "reporting", "sharing", "managing", "doctoring"},
    {"cli", "__main__"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
BASICS = {"errors", "files", "parsing", "paths", "threads"}
# These rooms keep apart from the others on their floor and below: all that they may import besides themselves.
APART = {
    "errors": set(),
    "paths": {"errors", "parsing"},
    "parsing": set(),
    "models": BASICS,
    "envs": BASICS | {"models.config"},
    "data": BASICS | {"models.config", "envs.tasks"},
    "repairing": BASICS | {"data", "envs.tasks", "envs.restore", "envs.transitions"},
    "algos": BASICS | {"models", "data", "config"},
    "evaluation": BASICS | {"models.config", "envs", "data.trajectories"},
    "planning": BASICS | {"models"},
}
EXCEPTIONS = {"data.builtin_worker -> envs.make.make"}  # it simulates
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


def is_within(name: str, place: str) -> bool:
    return name == place or name.startswith(place + ".")


def doors(sources: dict[str, str]) -> list[str]:
    """Return what should not be there, as `importer -> imported`."""
    wrong = []
    for module, source in sources.items():
        if module == FACADE:
            continue
        room = module.split(".")[0]
        for imported in imports_in(source):
            if imported == "__version__" or (target := imported.split(".")[0]) == room:
                continue
            goes_up = FLOOR_OF[target] > FLOOR_OF[room] or (target == "cli" and module != "__main__")
            if goes_up or not any(is_within(imported, place) for place in APART.get(room, FLOOR_OF)):
                wrong.append(f"{module} -> {imported}")
    return [door for door in wrong if door not in EXCEPTIONS]


def all_sources() -> dict[str, str]:
    return {module_name(path): path.read_text(encoding="utf-8") for path in FILES}


def test_every_module_has_its_floor() -> None:
    rooms = {module_name(path).split(".")[0] for path in FILES} - {FACADE}
    assert rooms - FLOOR_OF.keys() == set()
    assert len(rooms) > 12


def test_no_door_that_should_not_be_there() -> None:
    assert doors(all_sources()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("data.sampler", "from gq.models.scaling import Scaling"),
        ("data.sampler", "from gq.envs.make import make"),
        ("models.mlp", "import gq.data.sampler"),
        ("models.mlp", "from gq import data"),
        ("envs.make", "from gq.models.scaling import Scaling"),
        ("paths", "from gq.files import sha256"),
        ("errors", "from gq.config import RunConfig"),
        ("config", "from gq.presets import dt"),
        ("evaluation.rollout", "from gq.algos.dt import DTPolicy"),
        ("algos.dt", "def f():\n    from gq.engine.loop import Loop"),
        ("engine.loop", "if TYPE_CHECKING:\n    from gq.rendering import render"),
        ("rendering", "from gq.cli.output import Output"),
        ("paths", "from gq.envs.tasks import TASKS"),
    ],
)
def test_a_wrong_door_is_found(module: str, line: str) -> None:
    assert len(doors({module: line})) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("data.formats", "from gq.envs.tasks import resolve_task"),
        ("config", "from gq.models.config import ModelConfig"),
        ("data.sampler", "from gq.models.config import ModelConfig"),
        ("envs.make", "from gq.models import config"),
        ("cli.train", "from gq.engine.offline import train"),
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
    child = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
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


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_file_and_its_functions_are_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            assert node.end_lineno - node.lineno + 1 <= MAX_FUNCTION_LINES, node.name


def calls_in(source: str) -> set[str]:
    """Return the names of plain functions that a module calls."""
    calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return {function.id for function in calls if isinstance(function, ast.Name)}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_only_the_sink_of_the_command_line_prints(path: Path) -> None:
    if module_name(path) != "cli.output":
        assert "print" not in calls_in(path.read_text(encoding="utf-8"))


def test_a_print_would_be_found() -> None:
    assert "print" in calls_in("def f():\n    if x:\n        print(1)")
    assert "print" not in calls_in("def fingerprint(): ...\nfingerprint()\nconsole.print(2)")


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_module_imports_pickle_or_click_or_catches_everything(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), "a bare except"
    assert names & {"pickle", "cPickle", "dill", "joblib", "click", "d4rl", "gym"} == set()

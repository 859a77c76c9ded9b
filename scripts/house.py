"""Print how large the house is, room by room: lines, files, functions with many parameters, circles between files.

    python scripts/house.py [FOLDER]

The figures are for people to look at; the import rules are tests, and the number of arguments is a lint rule.
"""

import ast
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_PARAMETERS = 7

sys.path.insert(0, str(ROOT / "tests"))

from test_import_graph import FRONT, circles, module_name  # noqa: E402


def many_parameters(source: str) -> list[tuple[str, int]]:
    """Return the functions with more than MAX_PARAMETERS parameters, `self` and `cls` not counted."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            number = sum(argument.arg not in ("self", "cls") for argument in arguments)
            if number > MAX_PARAMETERS:
                found.append((node.name, number))
    return found


def main() -> None:
    """Print the table."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    files = {path: path.read_text(encoding="utf-8") for path in sorted((folder / "src" / "gq").rglob("*.py"))}
    sizes = {path: source.count("\n") for path, source in files.items()}
    rooms: dict[str, list[Path]] = {}
    for path in files:
        parts = path.relative_to(folder / "src" / "gq").parts
        rooms.setdefault(parts[0].removesuffix(".py"), []).append(path)
    order = [room for floor in FRONT for room in sorted(floor)]
    front = [room for room in order if room in rooms]
    annexes = [room for room in sorted(rooms) if room not in front]
    for title, names in (("front house", front), ("annexes", annexes)):
        total = sum(sizes[path] for room in names for path in rooms[room])
        print(f"{title}: {total:,} lines")
        for room in names:
            paths = rooms[room]
            largest = max(paths, key=lambda path: sizes[path])
            lines = sum(sizes[path] for path in paths)
            print(f"  {room:14}{lines:7,} lines {len(paths):4} files   largest {largest.name} {sizes[largest]}")
    contents = [size for path, size in sizes.items() if path.name != "__init__.py"]
    crowded = [(path, *found) for path, source in files.items() for found in many_parameters(source)]
    print(f"src: {sum(sizes.values()):,} lines in {len(files)} files")
    print(f"median {statistics.median(contents):.0f} lines, largest {max(contents)}")
    print(f"functions with more than {MAX_PARAMETERS} parameters: {len(crowded)}")
    for path, name, number in crowded:
        print(f"  {path.relative_to(folder)}: {name} ({number})")
    tests = sum(path.read_text(encoding="utf-8").count("\n") for path in (folder / "tests").rglob("*.py"))
    print(f"tests: {tests:,} lines")
    if folder == ROOT:
        print(f"circles: {circles({module_name(path): source for path, source in files.items()}) or 'none'}")


if __name__ == "__main__":
    main()

"""The house rules that a program can check: floors, sizes, doors to dependencies, public names, runnable documents."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENGINE = ROOT / "shardstore"

FLOORS: list[set[str]] = [
    {"errors", "forksafe"},
    {"record", "manifest", "layout", "rewrite", "segment"},
    {"backends", "salvage"},
    {"log"},
    {"reader"},
    {"judge"},
    {"writer"},
    {"compact"},
    {"background", "describe", "durable", "follow", "ingest", "verify"},
    {"repair"},
    {"session"},
    {"aio", "store"},
    {"__init__"},
    {"generations", "jsonl", "linear", "shapes", "viewfiles", "viewfolder", "views"},
    {"adapters", "mount"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
DOORS = {  # dependency: the only modules that may import it
    "msgspec": {"record"},
    "orjson": {"record"},
    "watchfiles": {"follow"},
    "obstore": {"backends/objects"},
    "anyio": {"aio", "follow"},
    "click": {"cli"},
    "mfusepy": {"mount/library"},
    "rich": {"cli", "demo"},
}
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
TOO_LONG: set[str] = set()  # files and functions over the limits; this set may only shrink


def sources(*folders: str) -> list[Path]:
    """Return the Python files below some folders of the project."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


ALL = sources("shardstore", "migrate", "tests", "benchmarks")
MODULES = sources("shardstore")


def name_of(path: Path) -> str:
    """Return a module's name below the package, with slashes."""
    return str(path.relative_to(ENGINE).with_suffix(""))


def floor_of(name: str) -> int:
    """Return the floor of a module of the package."""
    top = name.split("/")[0].split(".")[0]
    (floor,) = [number for number, names in enumerate(FLOORS) if top in names]
    return floor


def imports(path: Path, *, lazy: bool = True) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of every import in a file, of those inside functions only with `lazy`.

    The name is "" where the module itself is imported.
    """
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or ENGINE not in path.parents, f"{path}: imports are absolute"
            yield from ((node.module or "", alias.name) for alias in node.names)


def own_imports(path: Path, *, lazy: bool = True) -> Iterator[tuple[str, str]]:
    """Yield (module below the package, name) of the imports of this very package."""
    for module, name in imports(path, lazy=lazy):
        if module == "shardstore" and name and (ENGINE / f"{name}.py").exists():
            yield name, ""
        elif module == "shardstore":
            yield "__init__", name
        elif module.startswith("shardstore."):
            below = module.removeprefix("shardstore.").replace(".", "/")
            deeper = ENGINE / below / f"{name}.py"
            yield (f"{below}/{name}", "") if deeper.exists() else (below, name)


def public(path: Path) -> list[str]:
    """Return a module's `__all__`; empty without one."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def file_of(module: str) -> Path:
    """Return the file of a module below the package."""
    plain = ENGINE / f"{module}.py"
    return plain if plain.exists() else ENGINE / module / "__init__.py"


def test_every_module_has_a_floor() -> None:
    """Each module and folder of the package stands on exactly one floor."""
    assert len(set().union(*FLOORS)) == sum(map(len, FLOORS))
    assert {name_of(path).split("/")[0] for path in MODULES} <= set().union(*FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_only_downward(path: Path) -> None:
    """A module imports from floors below it, or from a neighbour on its own floor; the backends from each other."""
    mine = floor_of(name_of(path))
    for module, name in own_imports(path):
        assert floor_of(module) <= mine, f"{name_of(path)} imports {module}.{name} from above"


def test_no_circle_of_imports() -> None:
    """No two modules import each other, directly or by detours; what a command imports when it runs does not count."""
    graph = {
        name_of(path): {module for module, _ in own_imports(path, lazy=False) if module != "__init__"}
        for path in MODULES
    }
    tuple(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_public_names_are_imported(path: Path) -> None:
    """What one module takes from another stands in that one's `__all__`; nothing begins with an underscore."""
    for module, name in own_imports(path):
        if name and module != "__init__":
            assert name in public(file_of(module)), f"{name_of(path)} imports {module}.{name}, which is not public"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_all_is_sorted_and_complete(path: Path) -> None:
    """`__all__` names every public function and class of the module, in order, and nothing that is not there."""
    names = public(path)

    def order(name: str) -> tuple[int, str]:
        return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)

    assert names == sorted(names, key=order)
    body = ast.parse(path.read_text()).body
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    commands = {node.name for node in body if isinstance(node, ast.FunctionDef) and node.decorator_list}
    if path.name != "__main__.py":
        hidden = commands if path.parent.name == "cli" else set()  # reached through the command line
        assert {name for name in defined - hidden if not name.startswith("_")} <= set(names)
    if path.name != "__init__.py":
        bound = {
            n.id
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        assert set(names) <= defined | bound | {name for _, name in imports(path)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_one_door_to_each_dependency(path: Path) -> None:
    """Each dependency enters the package in one place, so that it can be replaced there."""
    for module, _ in imports(path):
        doors = DOORS.get(module.split(".")[0])
        if doors is not None:
            assert {name_of(path), name_of(path).split("/")[0]} & doors, f"{module} may not enter here"


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstring(path: Path) -> None:
    """Each module opens with its purpose, and each test says what must hold."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module opens with a docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and path.parent.name == "tests":
            assert ast.get_docstring(node), f"{node.name} does not say what must hold"


def test_sizes() -> None:
    """No file is longer than 400 lines and no function longer than 60, but for exceptions that may only shrink."""
    found = set()
    for path in ALL:
        name = str(path.relative_to(ROOT))
        if len(path.read_text().splitlines()) > FILE_LINES_MAX:
            found.add(name)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    found.add(f"{name}:{node.name}")
    assert found == TOO_LONG


@pytest.mark.parametrize("path", sources("migrate"), ids=lambda path: str(path.relative_to(ROOT)))
def test_outside_the_engine_only_what_is_exported(path: Path) -> None:
    """The migration tool uses the package as anybody could; its commands are part of the package's command line."""
    for module, name in imports(path):
        if module.split(".")[0] == "shardstore":
            allowed = {"shardstore", "shardstore.cli.app", "shardstore.cli.output"}
            assert module in allowed, f"imports {module}.{name}"


def test_the_package_exports_what_it_says() -> None:
    """Every name in the package's `__all__` is there, every error of the tree among them."""
    import shardstore

    assert all(hasattr(shardstore, name) for name in shardstore.__all__)
    errors = {name for name in public(ENGINE / "errors.py") if name[0].isupper()}
    assert errors <= set(shardstore.__all__)


def test_importing_the_engine_is_light() -> None:
    """Importing the package does not import what only the command line needs."""
    code = (
        "import sys, shardstore; print(*sorted({m.split('.')[0] for m in sys.modules} & {'click', 'rich', 'obstore'}))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout.strip() == ""


DOCUMENTS = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))] if path.exists()]


@pytest.mark.skipif(not DOCUMENTS, reason="there is no README yet")
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_in_documents_runs(path: Path, tmp_path: Path) -> None:
    """The blocks of a document that are marked as Python run, one after another, in an empty folder."""
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    script = tmp_path / "blocks.py"
    script.write_text("\n".join(blocks))
    answer = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr


def test_documents_quote_no_line_numbers() -> None:
    """Documents never point to a line by its number: it would be wrong after the next change."""
    for path in [*DOCUMENTS, ENGINE / "FORMAT.md"]:
        if path.exists():
            assert not re.search(r"\.py(:|#L)\d+", path.read_text()), path

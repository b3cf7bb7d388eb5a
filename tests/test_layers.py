"""Each layer imports only what stands below it (docs/design.md, section 3)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "polyloop"

#: From the ground up. A layer may import itself and what stands on a lower line; what shares a line is apart.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"_core"}),
    frozenset({"sync", "queues"}),
    frozenset({"runtime", "migrate"}),
    frozenset({"distributed"}),
    frozenset({"offload"}),
    frozenset({"tasks"}),
    frozenset({"actors", "pools"}),
    frozenset({"serve", "observe"}),
    frozenset({"testing"}),
    frozenset({"cli"}),
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}

#: The package itself re-exports the everyday names: only the command line, which is a user of it, may import it.
USERS = frozenset({"cli"})

#: What the design draws on one line, and what may therefore not import each other.
APART = ({"sync", "queues"}, {"actors", "pools"}, {"serve", "observe"})


def layer_of(module: str) -> str:
    """The layer of ``polyloop.<layer>...``; empty for the package itself."""
    return [*module.split("."), ""][1]


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Every module of polyloop that a file imports, with its line; inside of functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "polyloop")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import hides its layer"
            module = node.module or ""
            if module == "polyloop":  # from polyloop import x: a layer, or a name of the package
                yield from ((node.lineno, f"polyloop.{alias.name}") for alias in node.names)
            elif module.startswith("polyloop."):
                yield node.lineno, module


def violations(file: Path, layer: str) -> Iterator[str]:
    for line, module in imports(file):
        target = layer_of(module)
        if target == layer:
            continue
        where = f"{file.relative_to(SOURCE)}:{line} imports {module}"
        if target not in LEVELS:
            if layer not in USERS:
                yield f"{where}: only a user of the package may import it as a whole"
        elif LEVELS[target] > LEVELS[layer]:
            yield f"{where}: {target} stands above {layer}"
        elif any({layer, target} <= pair for pair in APART):
            yield f"{where}: {layer} and {target} stand side by side"


def folders() -> list[str]:
    return sorted(path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file())


def test_every_folder_has_a_layer() -> None:
    """A new folder is a decision: add it here and to the design."""
    assert set(folders()) <= set(LEVELS)


@pytest.mark.parametrize("layer", folders())
def test_a_layer_imports_only_what_stands_below_it(layer: str) -> None:
    """No upward import, in functions neither, and none between neighbours."""
    found = [line for file in sorted((SOURCE / layer).rglob("*.py")) for line in violations(file, layer)]
    assert not found, "\n".join(found)


def test_an_upward_import_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each of its spellings."""
    monkeypatch.setattr("tests.test_layers.SOURCE", tmp_path)
    bad = tmp_path / "bad.py"
    bad.write_text(
        "import polyloop.runtime\n"
        "from polyloop.tasks._group import TaskGroup\n"
        "from polyloop import cli, run\n"
        "def f():\n    from polyloop.queues import Queue\n"
        "from polyloop._core import _prims\n"
    )
    assert [line.split(" ")[0] for line in violations(bad, "sync")] == [f"bad.py:{line}" for line in (1, 2, 3, 3, 5)]


def test_only_the_seam_imports_threading_and_time() -> None:
    """So that tests replace them in one place, and every thread starts with an empty context."""
    banned = {"threading", "_thread", "queue", "time"}
    allowed = {SOURCE / "_core" / "_prims.py"}
    found: list[str] = []
    for file in sorted(SOURCE.rglob("*.py")):
        if file in allowed or "cli" in file.relative_to(SOURCE).parts:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found += [f"{file.relative_to(SOURCE)}: {name}" for name in names if name.split(".")[0] in banned]
    assert found == []

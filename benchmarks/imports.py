"""Who imports whom: floors, circles, and ways past the faces, read from the source text.

- An import counts wherever it stands, inside functions too, but not under `TYPE_CHECKING`. A name
  that a face (the `__init__` of a package or a chapter) passes on counts as an import of the file
  that has it, so faces themselves have no floor.
- Floors are the files of the longest chain of imports inside a package; a circle is one floor.
- An import between packages is a pair of files; it goes past the face if it names another file
  than an `__init__`.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGES = ("matvit", "indexing", "retrieval", "app")


@dataclass
class Module:
    """A file, and which others it imports.

    Attributes:
        named: Modules as the import statements have them.
        used: Files whose names are imported, through whatever face.
    """

    path: Path
    lines: int
    named: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)

    @property
    def is_face(self) -> bool:
        """Whether it only passes on what others have."""
        return self.path.name == "__init__.py"


def read_modules(source: Path) -> dict[str, Module]:
    """Read all files of the four packages and connect them."""
    modules = {
        _module_name(path.relative_to(source)): Module(path, count_lines(path))
        for package in PACKAGES
        for path in sorted((source / package).rglob("*.py"))
    }
    passed_on = {name: _passed_on(name, modules) for name in modules if modules[name].is_face}

    def home(module: str, name: str) -> str:
        """The file that has a name, behind faces."""
        while name in passed_on.get(module, {}):
            module, name = passed_on[module][name]
        return module

    for own, module in modules.items():
        for target, name in _imported(parse(module.path), modules):
            module.named.add(target)
            module.used.add(target if name is None else home(target, name))
        module.named -= {own}
        module.used = {each for each in module.used - {own} if not modules[each].is_face}
    return modules


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _passed_on(face: str, modules: dict[str, Module]) -> dict[str, tuple[str, str]]:
    """Where the names of a face come from: its imports, those of its stub, and a `_LAZY` table."""
    found: dict[str, tuple[str, str]] = {}
    path = modules[face].path
    for text in (path, path.with_suffix(".pyi")):
        for node in ast.walk(parse(text)) if text.exists() else ():
            if isinstance(node, ast.ImportFrom):
                inner = f"{face}.{node.module}" if node.level else str(node.module)
                found |= {each.asname or each.name: (inner, each.name) for each in node.names}
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_LAZY":
                lazy = ast.literal_eval(node.value)
                found |= {name: (inner, name) for name, inner in lazy.items()}
    return {name: origin for name, origin in found.items() if origin[0] in modules}


def _imported(tree: ast.Module, modules: dict[str, Module]) -> Iterator[tuple[str, str | None]]:
    """Modules that a file imports, and the name it wants of each; None for the module itself.

    A module that is imported whole is asked for names where it is used, as in `conversion.split`.
    """
    whole: dict[str, str] = {}
    for node in _imports(tree):
        for each in node.names:
            base = node.module or "" if isinstance(node, ast.ImportFrom) else each.name
            inner = f"{base}.{each.name}"
            if isinstance(node, ast.ImportFrom) and inner not in modules:
                if base in modules:
                    yield base, each.name
                continue
            target = inner if isinstance(node, ast.ImportFrom) else base
            if target in modules:
                whole[each.asname or (target if target == base else each.name)] = target
                yield target, None
    for part in ast.walk(tree):
        if isinstance(part, ast.Attribute) and (target := whole.get(ast.unparse(part.value), "")):
            yield target, part.attr


def _imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import statement that is ever carried out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _imports(other)
        else:
            yield from _imports(child)


def measure_imports(modules: dict[str, Module]) -> dict[str, Any]:
    """Count floors, circles, files with one reader, and ways past the faces."""
    files = {name: module for name, module in modules.items() if not module.is_face}
    readers = Counter(used for module in files.values() for used in module.used)
    once = sorted(name for name in files if readers[name] == 1)
    between = {
        (own, target)
        for own, module in modules.items()
        for target in module.named
        if _package(own) != _package(target)
    }
    past = sorted(pair for pair in between if not modules[pair[1]].is_face)
    return {
        "floors": {package: floors(files, package) for package in PACKAGES},
        "circles": [circle for circle in circles(files) if len(circle) > 1],
        "imported_once": {
            "files": len(once),
            "lines": sum(files[name].lines for name in once),
            "names": once,
        },
        "between_packages": {"imports": len(between), "past_the_face": len(past)},
    }


def _package(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def floors(files: dict[str, Module], package: str) -> int:
    """Files of the longest chain of imports inside a package; a circle counts once."""
    heights: dict[str, int] = {}
    for circle in circles(files):  # whatever a file imports comes before it
        below = {each for name in circle for each in files[name].used} - set(circle)
        height = 1 + max((heights[each] for each in below if _package(each) == package), default=0)
        heights |= dict.fromkeys(circle, height)
    return max(height for name, height in heights.items() if _package(name) == package)


def circles(files: dict[str, Module]) -> list[list[str]]:
    """Strongly connected components, those that are imported first; most are a single file.

    References:
        Tarjan: Depth-first search and linear graph algorithms (1972), section 4.
    """
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    pending: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        pending.append(name)
        for target in sorted(files[name].used):
            if target not in order:
                visit(target)
            if target in pending:
                lowest[name] = min(lowest[name], lowest[target])
        if lowest[name] == order[name]:
            place = pending.index(name)
            found.append(sorted(pending[place:]))
            del pending[place:]

    for name in files:
        if name not in order:
            visit(name)
    return found


def count_lines(path: Path) -> int:
    """Lines of a file, empty ones included."""
    return len(path.read_text(encoding="utf-8").splitlines())


def parse(path: Path) -> ast.Module:
    """Read a file as Python."""
    return ast.parse(path.read_text(encoding="utf-8"))

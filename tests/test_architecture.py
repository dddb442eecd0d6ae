"""The folder is the architecture: imports point one way, and some libraries have one importer."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = ["tools", "daemon", "vfs", "cache", "manifest"]
"""A package imports from the packages behind it in this list, never from those before it."""

CACHE_MAY_SEE = {"errors", "digest", "recipe", "library", "layout"}
"""Of manifest, cache/ sees only these modules: its callers hand it opaque keys."""

ONLY_IMPORTER = {
    "obstore": {"manifest/library.py", "manifest/library_s3.py"},
    "boto3": {"manifest/library_s3.py"},
    "botocore": {"manifest/library_s3.py"},
    "pyfuse3": {"vfs/pyfuse3_binding.py"},
    "diskcache": {"cache/small.py"},
    "urllib3": {"cache/sources/site.py"},
    "securesystemslib": {"manifest/trust.py"},
}


def modules() -> list[Path]:
    found = [path for package in ORDER for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(found) > 20, "the packages were not found"
    return found


def imports(path: Path) -> set[str]:
    """The dotted names that a module imports, wherever in the file they are imported."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    before = set(ORDER[: ORDER.index(package)]) | {"tests"}
    wrong = sorted(name for name in imports(path) if name.split(".")[0] in before)
    assert not wrong, f"{package}/ must not import {wrong}"


@pytest.mark.parametrize("path", sorted((ROOT / "cache").rglob("*.py")), ids=lambda path: path.name)
def test_the_cache_sees_of_the_manifest_only_digests_recipes_and_the_library(path: Path) -> None:
    seen = {name.split(".")[1] for name in imports(path) if name.startswith("manifest.")}
    assert seen <= CACHE_MAY_SEE


@pytest.mark.parametrize("path", sorted((ROOT / "manifest").rglob("*.py")), ids=lambda path: path.name)
def test_the_manifest_is_synchronous(path: Path) -> None:
    assert "trio" not in {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("library", sorted(ONLY_IMPORTER))
def test_a_library_is_imported_in_its_one_module(library: str) -> None:
    importers = {
        str(path.relative_to(ROOT)) for path in modules() if library in {name.split(".")[0] for name in imports(path)}
    }
    assert importers <= ONLY_IMPORTER[library]


def test_the_top_level_is_the_fixed_house() -> None:
    fixed = {"vfs", "manifest", "cache", "daemon", "tools", "tests", "systemd", "docs"}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= fixed
    assert all((ROOT / name).is_dir() for name in fixed)

"""The repository keeps its shape: folders, packages, layers of size, and a wheel that carries its data."""

import ast
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from bus.version import VERSION

ROOT = Path(__file__).parents[2]
PACKAGES = ("bus", "components", "kv_events", "offload", "planner", "frontend")
FOLDERS = (*PACKAGES, "nats", "configs", "tests")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_folders_are_there(folder: str) -> None:
    assert (ROOT / folder).is_dir()


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_is_ours(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).is_relative_to(ROOT)


def test_nats_is_the_client_and_the_folder_holds_no_python() -> None:
    spec = importlib.util.find_spec("nats")
    assert spec is not None
    assert spec.origin is not None
    assert not Path(spec.origin).is_relative_to(ROOT / "nats")
    assert not list((ROOT / "nats").rglob("*.py"))
    client = {path.name for path in Path(spec.origin).parent.iterdir() if path.is_dir()}
    assert not client & {path.name for path in (ROOT / "nats").iterdir() if path.is_dir()}


def test_the_wheel_names_every_package_and_carries_the_data() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert sorted(wheel["packages"]) == sorted(PACKAGES)
    assert wheel["force-include"] == {"nats": "bus/data/nats", "configs": "bus/data/configs"}
    assert PROJECT["tool"]["hatch"]["build"]["dev-mode-dirs"] == ["."]
    assert PROJECT["project"]["version"] == VERSION


def test_the_core_is_light() -> None:
    names = " ".join(PROJECT["project"]["dependencies"])
    for heavy in ("torch", "transformers", "pydantic", "numpy", "openai"):
        assert heavy not in names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_module_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text())
    docstring = ast.get_docstring(tree)
    assert docstring, "a module begins with a docstring"
    if path.name == "__init__.py":
        return
    said = re.search(r"\b(Pure|I/O)\b", docstring.splitlines()[0])
    assert said, "the first line says Pure or I/O"
    if said[1] == "Pure":
        imported = {name.split(".")[0] for name in _imports(tree)}
        assert not imported & {"anyio", "asyncio", "nats", "socket", "subprocess"}


def _imports(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names

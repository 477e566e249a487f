"""The files that set the project up agree with each other."""

import ast
import graphlib
import sys
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_the_conda_environment_installs_what_pyproject_lists() -> None:
    environment = yaml.safe_load((ROOT / "pytorch-conda.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert environment["name"] == "pytorch"
    python, pip, installed = environment["dependencies"]
    assert python == f"python{project['requires-python']}" and pip == "pip"
    assert installed == {"pip": ["--editable .[dev]"]}  # one list of dependencies, and this is not it


def test_what_is_imported_is_what_is_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {requirement.split(">=")[0].replace("-", "_") for requirement in project["dependencies"]}
    names |= {requirement.split(">=")[0].replace("-", "_") for requirement in project["optional-dependencies"]["dev"]}
    modules = {"opencv_python_headless": "cv2", "pillow": "PIL", "scikit_learn": "sklearn", "pyyaml": "yaml",
               "six": "kaggle", "tensorboard": "torch"}  # the last two: asked for by others, which do not say so
    tools = {"ruff", "mypy", "pytest_xdist"}
    imported = imports("datasets", "models", "training", "utils", "tests", "benchmarks")
    assert {modules.get(name, name) for name in names - tools} == imported - {"kagglesdk"}  # a part of kaggle


def imports(*folders: str) -> set[str]:
    """Every package that the code imports, the project's own and Python's left out."""
    found = set()
    for path in (path for folder in folders for path in (ROOT / folder).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {path.name for path in ROOT.iterdir()}


def test_imports_run_one_way() -> None:
    """No circle of modules, lazy imports included; data and models know nothing of training or of each other."""
    folders = ("datasets", "models", "training", "utils")
    modules = {f"{folder}.{path.stem}".removesuffix(".__init__"): path
               for folder in folders for path in (ROOT / folder).glob("*.py")}  # fmt: skip
    uses: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                parts = {f"{node.module}.{alias.name}" for alias in node.names} & set(modules)
                uses[name] |= parts or {node.module} & set(modules)
            elif isinstance(node, ast.Import):
                uses[name] |= {alias.name for alias in node.names} & set(modules)
    graphlib.TopologicalSorter(uses).prepare()  # raises CycleError
    packages = {(name.split(".")[0], used.split(".")[0]) for name in uses for used in uses[name]}
    assert not packages & {("datasets", "models"), ("datasets", "training"), ("models", "datasets"),
                           ("models", "training"), ("models", "utils"), ("utils", "training")}  # fmt: skip


def test_only_the_agreed_names_stand_at_the_top() -> None:
    agreed = {"datasets", "models", "training", "notebooks", "jobs", "utils", "papers", "images", "pytorch-conda.yaml",
              "README.md", "LICENSE", "tests", "benchmarks", "Makefile", "pyproject.toml", "runs"}  # fmt: skip
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".") and path.suffix != ".egg-info"}
    assert found <= agreed, found - agreed

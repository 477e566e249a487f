"""The files that set the project up agree with each other."""

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
    assert installed == {"pip": ["--editable ."]}  # one list of dependencies, and this is not it


def test_every_dependency_is_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {requirement.split(">=")[0].replace("-", "_") for requirement in project["dependencies"]}
    code = "\n".join(path.read_text() for folder in ("datasets", "models", "training", "utils", "tests", "benchmarks")
                     for path in (ROOT / folder).glob("*.py"))  # fmt: skip
    modules = {"opencv_python_headless": "cv2", "pillow": "PIL", "scikit_learn": "sklearn", "six": "kaggle"}
    unused = {name for name in names if modules.get(name, name) not in code}
    assert not unused


def test_only_the_agreed_names_stand_at_the_top() -> None:
    agreed = {"datasets", "models", "training", "notebooks", "jobs", "utils", "papers", "images", "pytorch-conda.yaml",
              "README.md", "LICENSE", "tests", "benchmarks", "Makefile", "pyproject.toml", "runs"}  # fmt: skip
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".") and path.suffix != ".egg-info"}
    assert found <= agreed, found - agreed

"""Published weights: one safetensors file, float16, with a JSON header that says what they are.

The header holds "model" and "options", which rebuild the architecture, and whatever else the writer knows:
preprocessing, data, split, metrics, commit. So a file needs nothing beside it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import nn

from models.base import Model
from models.registry import MODELS, build, full_options

SAVED_MODELS = Path(__file__).parent / "saved_models"


def save(model: nn.Module, path: str | Path, /, **header: Any) -> None:
    """Writes the weights of a model made by `models.build` or `models.load`, completely or not at all.

    Floating tensors become float16, others stay, and so do those with values beyond 65,504 (the variance that a batch
    norm keeps may be one). "model" and "options" of the header are those of the model. Raises ValueError for a model of
    another origin and for weights that are not finite, TypeError for a header that JSON cannot hold, OSError when the
    disk is full; an older file at `path` then survives.
    """
    name, options = _identity(model)
    tensors = {key: _to_half(key, value) for key, value in model.state_dict().items()}
    metadata = {"header": json.dumps(header | {"model": name, "options": options})}
    _write(Path(path), safetensors.save(tensors, metadata))


def round_as_saved(model: nn.Module) -> None:
    """Rounds a model's values to what `save` writes and `load` reads. Raises ValueError as `save` does."""
    model.load_state_dict({key: _to_half(key, value) for key, value in model.state_dict().items()})


def load(path_or_name: str | Path, device: str | torch.device = "cpu") -> Model:
    """The model in a file, or a published one by its name, in float32 and eval mode, with its `header`.

    A name is that of a class or of a file of this folder: "AttentionUNet" or "attention_unet". Raises
    FileNotFoundError, and ValueError for a file that is damaged, has no header, or does not fit its model.
    """
    path = find(path_or_name)
    header = read_header(path)
    model = build(header["model"], **header["options"])
    _fill(model, path)
    model.header = header
    return model.to(device).eval()


def load_into(model: nn.Module, path_or_name: str | Path) -> None:
    """Fills a model with published weights, to train on from there.

    Raises what `load` raises, and ValueError when the weights are of another architecture or other options.
    """
    path = find(path_or_name)
    header = read_header(path)
    wanted = _identity(model)
    found = header["model"], full_options(header["model"], **header["options"])
    if found != wanted:
        raise ValueError(f"{path} holds {_describe(*found)}, but the model is {_describe(*wanted)}.")
    _fill(model, path)


def read_header(path_or_name: str | Path) -> dict[str, Any]:
    """The header alone. Raises FileNotFoundError, and ValueError for a damaged file or one without header."""
    path = find(path_or_name)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        whole = "take the .safetensors of a finished run, or fetch it again"
        raise ValueError(f"{path} is damaged or no safetensors file ({error}): {whole}.") from error
    try:
        header = json.loads(metadata.get("header", ""))
        return header | {"model": str(header["model"]), "options": dict(header["options"])}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} has no header that names its model and options.") from error


def recorded(header: Mapping[str, Any]) -> set[str]:
    """What `noted` names, and of each slice its case, too: who the weights of a header have seen anything of."""
    return noted(header) | {name.rsplit(":", 1)[0] for name in noted(header)}


def noted(header: Mapping[str, Any]) -> set[str]:
    """The names in a header of what its weights have seen: patients, files, or slices, "case:z".

    Older weights name the members of their split only.
    """
    split = header.get("split", {"train": [], "val": []})
    return {*header.get("seen", []), *split["train"], *split["val"]}


def find(path_or_name: str | Path) -> Path:
    """The file of published weights, by its path or name. Raises FileNotFoundError where there is none."""
    classes = MODELS | {name: name for name in MODELS.values()}
    name = str(path_or_name)
    path = SAVED_MODELS / f"{classes[name]}.safetensors" if name in classes else Path(name)
    if not path.is_file():
        folder = path if path.is_dir() else SAVED_MODELS
        available = ", ".join(sorted(file.stem for file in folder.glob("*.safetensors"))) or "nothing"
        raise FileNotFoundError(f"There is no weights file {path}; {folder} holds {available}.")
    return path


def _identity(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """Name and options, the latter as JSON gives them back (a tuple is a list there)."""
    name, options = getattr(model, "name", None), getattr(model, "options", None)
    if not isinstance(name, str) or not isinstance(options, dict):
        raise ValueError(f"{type(model).__name__} does not know its name and options: make it by models.build.")
    return name, json.loads(json.dumps(options))


def _describe(name: str, options: dict[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"


def _to_half(key: str, value: torch.Tensor) -> torch.Tensor:
    value = value.detach().cpu().contiguous()
    if not value.is_floating_point():
        return value
    if not bool(value.isfinite().all()):
        raise ValueError(f"{key} has values that are not finite (NaN or infinity).")
    fits = bool((value.abs() <= torch.finfo(torch.float16).max).all())
    return value.half() if fits else value


def _fill(model: nn.Module, path: Path) -> None:
    try:
        model.load_state_dict(safetensors.load_file(path))
    except RuntimeError as error:
        raise ValueError(f"The tensors in {path} do not fit {_describe(*_identity(model))}.") from error


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

"""Published weights: what is written comes back, whole or not at all, and errors say what is wrong."""

import copy
import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import torch as safetensors
from torch import nn

import models
from models import weights


@pytest.fixture(scope="module")
def trained() -> models.Model:
    torch.manual_seed(0)
    model = models.build("attention_unet", n_filters=2)
    model(torch.randn(2, 4, 16, 16))  # running statistics and counters of the batch norms move
    return model


@pytest.fixture
def model(trained: models.Model) -> models.Model:
    return copy.deepcopy(trained)


@pytest.fixture
def path(model: models.Model, tmp_path: Path) -> Path:
    path = tmp_path / "AttentionUNet.safetensors"
    models.save(model, path, data="phantom", metrics={"dice": 0.5})
    return path


def rewrite(path: Path, **changes: torch.Tensor | None) -> None:
    """Replaces (or, with None, removes) tensors of a weights file."""
    tensors = safetensors.load_file(path) | changes
    header = {"header": json.dumps(models.read_header(path))}
    kept = {key: value for key, value in tensors.items() if value is not None}
    safetensors.save_file(kept, path, header)


def test_round_trip_is_the_weights_rounded_to_float16(model: models.Model, path: Path) -> None:
    loaded = models.load(path)
    assert type(loaded) is type(model) and not loaded.training
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for key, value in loaded.state_dict().items():
        wanted = expected[key].half().float() if expected[key].is_floating_point() else expected[key]
        assert value.dtype == expected[key].dtype and torch.equal(value, wanted), key
    assert loaded.state_dict()["encoders.0.0.1.num_batches_tracked"] == 1
    stored = {value.dtype for value in safetensors.load_file(path).values()}
    assert stored == {torch.float16, torch.int64}


def test_header_is_the_architecture_and_what_the_caller_adds(model: models.Model, path: Path) -> None:
    header = {
        "model": "attention_unet",
        "options": {"in_channels": 4, "out_channels": 3, "n_filters": 2},
        "data": "phantom",
        "metrics": {"dice": 0.5},
    }
    assert models.read_header(path) == header
    assert models.load(path).header == header


def test_a_loaded_model_can_be_saved_again_with_its_header(path: Path, tmp_path: Path) -> None:
    loaded = models.load(path)
    models.save(loaded, tmp_path / "again.safetensors", **loaded.header)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_channels_last_weights_are_saved(model: models.Model, path: Path, tmp_path: Path) -> None:
    models.save(model.to(memory_format=torch.channels_last), tmp_path / "last.safetensors")
    one, other = models.load(path), models.load(tmp_path / "last.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", ["AttentionUNet", "attention_unet"])
def test_load_by_name(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SAVED_MODELS", path.parent)
    assert models.load(name).name == "attention_unet"


@pytest.mark.parametrize("name", ["ClassicUNet", "nowhere/ClassicUNet.safetensors", "resunet"])
def test_missing_file_is_named_and_the_others_listed(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SAVED_MODELS", path.parent)
    with pytest.raises(FileNotFoundError, match=rf"{name}.*holds AttentionUNet\."):
        models.load(name)


def test_a_folder_is_no_weights_file_but_may_hold_some(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no weights file {path.parent}; {path.parent} holds AttentionUNet\."):
        models.load(path.parent)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 100])
def test_not_a_safetensors_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.safetensors is damaged or no safetensors file"):
        models.load(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_truncated_file(share: float, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match="damaged"):
        models.load(path)


@pytest.mark.parametrize(
    "metadata", [None, {}, {"header": "{"}, {"header": "[]"}, {"header": "{}"}, {"header": '{"model": "vgg"}'}]
)
def test_file_without_header(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    safetensors.save_file({"weight": torch.zeros(1)}, path, metadata)
    with pytest.raises(ValueError, match="has no header"):
        models.load(path)


@pytest.mark.parametrize(
    "changes", [{"head.bias": torch.zeros(4)}, {"head.bias": None}, {"tail.bias": torch.zeros(1)}]
)
def test_tensors_that_do_not_fit(changes: dict[str, torch.Tensor | None], path: Path) -> None:
    rewrite(path, **changes)
    with pytest.raises(ValueError, match=r"do not fit attention_unet\(.*n_filters=2\)"):
        models.load(path)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_weights_that_are_not_finite_are_refused(value: float, model: models.Model, path: Path) -> None:
    before = path.read_bytes()
    model.head.bias.data[1] = value
    with pytest.raises(ValueError, match=r"head\.bias has values that are not finite"):
        models.save(model, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("value", [65_504.0, 65_505.0, -1e30])
def test_what_float16_cannot_hold_stays_float32(value: float, model: models.Model, path: Path) -> None:
    model.head.bias.data[1] = value
    models.save(model, path)
    assert models.load(path).head.bias[1] == torch.tensor(value)
    stored = {key: tensor.dtype for key, tensor in safetensors.load_file(path).items()}
    assert stored.pop("head.bias") == (torch.float16 if value == 65_504 else torch.float32)
    assert set(stored.values()) == {torch.float16, torch.int64}


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    model: models.Model, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        models.save(model, path, data="other")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_header_that_json_cannot_hold_writes_nothing(model: models.Model, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        models.save(model, tmp_path / "model.safetensors", data=tmp_path)
    assert not list(tmp_path.iterdir())


def test_only_models_that_were_built_can_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Linear does not know its name"):
        models.save(nn.Linear(1, 1), tmp_path / "model.safetensors")


def test_load_into_fills_a_model_of_the_same_kind(path: Path) -> None:
    fresh = models.build("attention_unet", n_filters=2)
    models.load_into(fresh, path)
    assert fresh.training
    expected = models.load(path).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in fresh.state_dict().items())


@pytest.mark.parametrize(("name", "n_filters"), [("improved_unet", 2), ("attention_unet", 4)])
def test_load_into_refuses_another_kind_and_names_both(name: str, n_filters: int, path: Path) -> None:
    other = models.build(name, n_filters=n_filters)
    message = rf"holds attention_unet\(.*n_filters=2\), but the model is {name}\(.*n_filters={n_filters}\)"
    with pytest.raises(ValueError, match=message):
        models.load_into(other, path)


@pytest.mark.parametrize(("name", "size"), [("CustomCNN", 128), ("CustomCNN_176", 176)])
def test_what_learnt_from_simulated_heads_alone_has_seen_no_patient(name: str, size: int) -> None:
    model = models.load(weights.SAVED_MODELS / "simulated" / f"{name}.safetensors")
    assert model.options["image_size"] == size == model.header["preprocessing"]["image_size"]
    seen = weights.noted(model.header)
    assert seen and all(Path(name).name.startswith("Phantom_1_") for name in seen)

"""The diagrams say what the models are: their numbers are compared with what is known of the models by other ways."""

from functools import cache
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.transforms import Bbox
from torch import nn

import models
from models.alexnet import CONVS
from models.cnn import Conv
from utils import diagrams
from utils.classifier_diagrams import LINES, cnn, vit
from utils.unet_diagrams import costs, unet

COUNTS = {  # published of the same architectures
    "classic_unet": 5_496_451, "improved_unet": 3_082_739, "attention_unet": 3_258_263,
    "custom_cnn": 3_001_156, "alexnet": 4_589_316, "vgg16": 65_070_916, "vit": 21_459_460,
    "attention_gate": 2 * (32 * 32 + 32) + 33,
}  # fmt: skip
UP = {"classic_unet": "512 256 256 128 128 64 64 32 32 32", "improved_unet": "256 256 128 128 64 64 32 32 32 32"}
UP["attention_unet"] = UP["improved_unet"]


@cache
def drawn(name: str) -> Figure:
    return diagrams.DIAGRAMS[name]()


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def table(figure: Figure) -> dict[str, str]:
    """The lines of numbers under a CNN, from left to right, without what is empty."""
    written = figure.axes[0].texts
    heights = {name: next(text.get_position()[1] for text in written if text.get_text() == name) for name in LINES}
    rows = {
        name: sorted((text.get_position()[0], text.get_text()) for text in written if text.get_position()[1] == height)
        for name, height in heights.items()
    }
    return {name: " ".join(text for _, text in row[1:] if text) for name, row in rows.items()}


@pytest.mark.parametrize("name", diagrams.DIAGRAMS)
def test_every_function_returns_a_figure_and_leaves_the_settings_alone(name: str) -> None:
    before = dict(matplotlib.rcParams)
    assert isinstance(drawn(name), Figure)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", [name for name in diagrams.DIAGRAMS if name != "unet_costs"])
def test_words_stay_on_the_page_and_off_each_other(name: str) -> None:
    figure = drawn(name)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = {text: text.get_window_extent(renderer) for text in figure.axes[0].texts if text.get_text()}
    assert len(boxes) > 10
    for text, box in boxes.items():
        assert box.x0 > 0 and box.y0 > 0 and box.x1 < figure.bbox.x1 and box.y1 < figure.bbox.y1, text
    for (one, first), (other, second) in combinations(boxes.items(), 2):
        assert Bbox.intersection(first, second) is None, (one, other)


def test_the_files_are_small_opaque_and_white_at_the_edge(tmp_path: Path) -> None:
    diagrams.write(tmp_path / "images")
    files = list((tmp_path / "images").iterdir())
    assert {file.name for file in files} == {f"{name}.png" for name in (*COUNTS, "unet_costs")}
    for file in files:
        assert file.stat().st_size < 150_000
        pixels = imread(file)
        assert pixels.shape[1] >= 1400 and (pixels.shape[2] == 3 or (pixels[..., 3] == 1).all())
        assert (pixels[[0, -1]] == 1).all() and (pixels[:, [0, -1]] == 1).all(), file.name
        assert pixels.std() > 0.05


@pytest.mark.parametrize("name", COUNTS)
def test_titles_count_the_parameters(name: str) -> None:
    assert texts(drawn(name))[0].endswith(f": {COUNTS[name]:,} parameters")


@pytest.mark.parametrize("name", UP)
def test_a_unet_shows_the_channels_along_its_way_and_the_sizes(name: str) -> None:
    numbers = " ".join(text for text in texts(drawn(name)) if text.isdigit())
    assert numbers.startswith(f"4 32 32 64 64 128 128 256 256 {UP[name]} 3 ")
    assert [text for text in texts(drawn(name)) if "×" in text][1:6] == ["160×192", "80×96", "40×48", "20×24", "10×12"]


def test_a_narrow_unet_shows_its_own_numbers() -> None:
    shown = texts(unet("classic_unet", n_filters=16))
    assert shown[0] == "ClassicUNet: 1,375,043 parameters"
    assert " ".join(text for text in shown if text.isdigit()).startswith("4 16 16 32 32 64 64 128 128 ")


@pytest.mark.parametrize(
    ("name", "joint", "layers"),
    [
        ("classic_unet", "C", ["conv 3×3", "32 → 64", "ReLU", "conv 3×3", "64 → 64", "ReLU"]),
        ("improved_unet", "+", ["depthwise 7×7", "32 → 32", "batch norm", "32", "conv 1×1", "32 → 256", "ReLU"]),
        ("attention_unet", "G", ["conv 1×1", "32 → 256", "ReLU", "conv 1×1", "256 → 64"]),
    ],
)
def test_a_unet_shows_its_block_and_how_it_joins(name: str, joint: str, layers: list[str]) -> None:
    shown = texts(drawn(name))
    assert any(shown[at : at + len(layers)] == layers for at in range(len(shown)))
    assert shown[-1] == {"C": "concatenation", "+": "addition", "G": "attention gate"}[joint]  # the last of the legend
    assert [shown.count(sign) for sign in "CG"] == [5 * (joint == sign) for sign in "CG"]  # four skips, the legend


def test_the_gate_shows_its_steps_and_their_sizes() -> None:
    shown = texts(drawn("attention_gate"))
    steps = {"encoder (skip)": "32×160×192", "decoder (lower)": "32×80×96", "key: conv 1×1, stride 2": "32×80×96",
             "query: conv 1×1": "32×80×96", "ReLU": "32×80×96", "conv 1×1": "1×80×96", "Sigmoid": "1×80×96",
             "upsampling ×2": "1×160×192", "out": "32×160×192"}  # fmt: skip
    assert {step: shown[shown.index(step) + 1] for step in steps} == steps


def test_a_cnn_shows_each_layer_with_its_numbers() -> None:
    rows = table(drawn("alexnet"))  # worked out by hand from Krizhevsky's table, as changed in models/alexnet.py
    assert rows["layer"] == "image conv pool conv pool 2× conv conv pool flatten linear linear linear linear"
    assert rows["kernel"] == "9×9 2×2 5×5 2×2 3×3 3×3 2×2"
    assert rows["stride"] == "4 2 1 2 1 1 2"
    assert rows["channels"] == "3 96 96 256 256 384 256 256 1024 512 512 128 4"
    assert rows["side (pixels)"] == "128 30 15 11 5 5 5 2"
    assert rows["parameters"] == "23.4k 615k 2.21M 885k 525k 263k 65.7k 516"


def test_vgg16_gathers_its_thirteen_convolutions_in_five_columns() -> None:
    rows = table(drawn("vgg16"))
    levels = "2× conv pool 2× conv pool 3× conv pool 3× conv pool 3× conv pool"
    assert rows["layer"] == f"image {levels} flatten linear linear linear"
    assert rows["channels"] == "3 64 64 128 128 256 256 512 512 512 512 8192 4096 4096 4"
    assert rows["side (pixels)"] == "128 128 64 64 32 32 16 16 8 8 4"


def test_a_diagram_follows_the_model_and_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.alexnet.CONVS", (Conv(48, 7, stride=2), *CONVS[1:]))
    rows = table(cnn("alexnet", image_size=64))
    assert rows["kernel"].startswith("7×7 5×5") and rows["stride"].startswith("2 1 ")
    assert rows["channels"].startswith("3 48 256 ")
    assert rows["side (pixels)"].startswith("64 29 25 ")  # (64 - 7) // 2 + 1, then a 5x5 without padding
    assert {"17 tokens of 512", "16 patches of 16×16"} <= set(texts(vit(image_size=64)))


def test_the_cnns_show_what_stands_behind_a_convolution() -> None:
    assert {"batch norm", "Mish", "0.4", "normalisation"} <= set(texts(drawn("custom_cnn")))
    assert not {"batch norm", "Mish", "normalisation"} & set(texts(drawn("alexnet")))


def test_the_transformer_shows_its_numbers() -> None:
    shown = texts(drawn("vit"))
    assert {"3×128×128 pixels", "64 patches of 16×16", "65 tokens of 512", "10 blocks", "8 heads of 64", "512 → 1024",
            "1024 → 512", "512 → 4"} <= set(shown)  # fmt: skip
    block = 2 * 2 * 512 + 4 * 512 * 512 + 4 * 512 + 2 * 512 * 1024 + 1024 + 512
    assert f"One of the blocks, {block:,} parameters:" in shown


def test_costs_are_those_of_the_models() -> None:
    weights, work = costs(n_filters=(2, 4)).axes
    assert weights.get_xscale() == weights.get_yscale() == work.get_yscale() == "log"
    for learned, products in zip(weights.lines, work.lines, strict=True):
        name = next(name for name, kind in models.MODELS.items() if kind == learned.get_label())
        nets = [models.build(name, n_filters=n) for n in (2, 4)]
        counts = [sum(parameter.numel() for parameter in net.parameters()) for net in nets]
        np.testing.assert_allclose(learned.get_ydata(), np.divide(counts, 1e6))
        np.testing.assert_allclose(products.get_ydata(), [multiply_adds(net) / 1e9 for net in nets])


def multiply_adds(net: nn.Module) -> int:
    """Of its convolutions: each value that one returns is a sum over its kernel."""
    sums: list[int] = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda conv, _, out: sums.append(out.numel() * conv.weight[0].numel()))
    with torch.no_grad():
        net.eval()(torch.zeros(1, 4, 160, 192))
    return sum(sums)

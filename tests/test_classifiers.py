"""The four classifiers: counts, sizes, gradients, skip connections, and what hooks read from them."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import models
from models import quick_cnn
from models.quick_cnn import GrayConv2d, QuickMish
from models.vit import attend
from utils import explain

COUNTS = {"custom_cnn": 3_001_156, "alexnet": 4_589_316, "vgg16": 65_070_916, "vit": 21_459_460}
SMALLEST = {"custom_cnn": 69, "alexnet": 69, "vgg16": 32, "vit": 16}
pytestmark = pytest.mark.usefixtures("one_thread")
every_classifier = pytest.mark.parametrize("name", COUNTS)
every_cnn = pytest.mark.parametrize("name", ["custom_cnn", "alexnet", "vgg16"])


def batch(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(1))


@every_classifier
def test_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        model = models.build(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]


@every_classifier
def test_options_are_honoured_and_every_parameter_learns(name: str) -> None:
    size = 96 if name != "vgg16" else 32
    model = models.build(name, in_channels=1, num_classes=7, image_size=size)
    logits = model(batch(4, 1, size, size))
    assert logits.shape == (4, 7)
    logits.square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), key
    modules = [module for module in model.modules() if not list(module.children())]
    assert len({id(module) for module in modules}) == len(modules)


@every_classifier
def test_a_size_that_cannot_work_says_which_can(name: str) -> None:
    good = SMALLEST[name]
    models.build(name, image_size=good).eval()(batch(1, 3, good, good))
    with pytest.raises(ValueError, match=rf"{good}|multiple of patch_size 16"):
        models.build(name, image_size=good - 1)
    with pytest.raises(ValueError, match="positive"):
        models.build(name, num_classes=0)


@every_classifier
def test_eval_mode_is_a_function_of_each_image_alone(name: str) -> None:
    size = max(SMALLEST[name], 32)
    model, images = models.build(name, image_size=size).eval(), batch(3, 3, size, size)
    with torch.no_grad():
        together = model(images)
        for number in range(3):
            torch.testing.assert_close(model(images[number : number + 1])[0], together[number], rtol=1e-4, atol=1e-5)


def test_options_of_the_vision_transformer() -> None:
    model = models.build("vit", image_size=48, patch_size=8, dim=24, depth=2, heads=3, mlp_dim=32)
    assert model(batch(2, 3, 48, 48)).shape == (2, 4)
    with pytest.raises(ValueError, match="dim 20 is not a multiple of heads 8"):
        models.build("vit", dim=20)
    with pytest.raises(ValueError, match="patch_dropout must be"):
        models.build("vit", patch_dropout=1.0)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.99])
def test_in_training_a_transformer_sees_some_patches_of_each_image(share: float) -> None:
    torch.manual_seed(0)
    model = models.build("vit", image_size=32, patch_size=8, dim=24, depth=1, heads=3, patch_dropout=share)
    seen = []
    model.blocks.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    images = batch(6, 3, 32, 32)
    whole, kept = model.eval()(images), model.train()(images)
    every, some = seen
    assert every.shape == (6, 17, 24) and some.shape == (6, 1 + max(1, round(16 * (1 - share))), 24)
    torch.testing.assert_close(some[:, 0], every[:, 0])  # the class token stays
    same = torch.cdist(some, every) < 1e-4  # each token is one of the image's own, with the position it had
    places = same.int().argmax(dim=2)
    assert (same.sum(dim=2) == 1).all() and all(len(set(found)) == len(found) for found in places.tolist())
    if 0 < share < 0.9:
        assert len({tuple(found) for found in places.tolist()}) > 1  # other ones of each image
    assert torch.allclose(kept, whole, atol=1e-5) == (share == 0)


def test_the_skip_connections_are_what_is_added() -> None:
    torch.manual_seed(0)
    model = models.build("custom_cnn", residual=True).eval()
    plain = models.build("custom_cnn").eval()
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if ".skip." not in key})
    images = batch(2, 3, 128, 128)
    assert not torch.allclose(model(images), plain(images))
    first = model.features[0]
    by_hand = first.norm(first.conv(images)) + F.conv2d(images[..., 4:-4, 4:-4], first.skip.weight, stride=4)
    torch.testing.assert_close(first(images), F.mish(by_hand))
    for block in model.features.children():
        if hasattr(block, "skip"):
            nn.init.zeros_(block.skip.weight)
    torch.testing.assert_close(model(images), plain(images))


@pytest.mark.parametrize("name", ["custom_cnn", "vit"])
def test_a_batch_is_learnt_by_heart(name: str) -> None:
    torch.manual_seed(0)
    options = {"depth": 2, "dim": 64, "mlp_dim": 64} if name == "vit" else {"dropout": 0.0, "image_size": 69}
    model = models.build(name, **options)
    images, labels = batch(8, 3, model.options["image_size"], model.options["image_size"]), torch.arange(8) % 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(40):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_token_attention_is_what_the_transformer_used() -> None:
    model = models.build("vit", image_size=32, dim=24, depth=2, heads=3, mlp_dim=32)
    images = batch(2, 3, 32, 32)
    expected = model.eval()(images)
    model.train()
    maps = explain.token_attention(model, images)
    assert model.training and [tuple(found.shape) for found in maps] == [(2, 3, 5, 5)] * 2
    for found in maps:
        torch.testing.assert_close(found.sum(dim=-1), torch.ones(2, 3, 5))
    # the network, its attention replaced by these maps, must say the same
    x = model.eval().patches(images).flatten(2).transpose(1, 2)
    x = torch.cat([model.class_token.expand(2, -1, -1), x], dim=1) + model.positions
    for block, found in zip(model.blocks, maps, strict=True):
        value = block.attention.qkv(block.norm1(x))[..., 48:].unflatten(2, (3, 8)).transpose(1, 2)
        x = x + block.attention.out((found @ value).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(model.head(model.norm(x))[:, 0], expected)
    torch.testing.assert_close(model(images), expected)  # nothing is left behind


@every_cnn
def test_feature_maps_and_kernels(name: str) -> None:
    size = SMALLEST[name]
    model, images = models.build(name, image_size=size).eval(), batch(2, 3, size, size)
    maps = explain.feature_maps(model, images)
    convs = [module for module in model.features.modules() if isinstance(module, nn.Conv2d)]
    assert [found.shape[1] for found in maps] == [conv.out_channels for conv in convs]
    torch.testing.assert_close(maps[0], model.features[0](images))
    kernels = explain.kernels(model)
    assert torch.equal(kernels, convs[0].weight)
    kernels.zero_()
    assert convs[0].weight.any()


def test_what_a_model_has_not_is_refused() -> None:
    vit, cnn = models.build("vit", depth=1), models.build("custom_cnn")
    with pytest.raises(ValueError, match="no tokens"):
        explain.token_attention(cnn, batch(1, 3, 128, 128))
    with pytest.raises(ValueError, match="none of the CNNs"):
        explain.feature_maps(vit, batch(1, 3, 128, 128))
    with pytest.raises(ValueError, match="no attention gates"):
        explain.attention_maps(cnn, batch(1, 3, 128, 128))


@every_classifier
def test_weights_come_back(name: str, tmp_path: Path) -> None:
    size = SMALLEST[name]
    model = models.build(name, image_size=size).eval()
    models.save(model, tmp_path / "model.safetensors", note="here")
    again = models.load(tmp_path / "model.safetensors")
    assert again.header["note"] == "here" and again.options == model.options
    with torch.no_grad():
        torch.testing.assert_close(again(batch(1, 3, size, size)), model(batch(1, 3, size, size)), rtol=0.02, atol=0.02)


# ---- what is quicker on a CPU


def test_attention_is_pytorchs() -> None:
    query, key, value = batch(3, 2, 4, 9, 8)
    assert torch.allclose(attend(query, key, value), F.scaled_dot_product_attention(query, key, value), atol=1e-6)


# ---- the quick layers


def test_gray_convolution_equals_the_slow_one() -> None:
    slow, quick = nn.Conv2d(3, 6, 5, stride=2, padding=1).double(), GrayConv2d(3, 6, 5, stride=2, padding=1).double()
    quick.load_state_dict(slow.state_dict())
    results = []
    for conv, copied in ((slow, True), (quick, False), (quick, True)):
        gray = batch(2, 1, 11, 14).double().requires_grad_()
        images = gray.expand(-1, 3, -1, -1)
        y = conv.to(memory_format=torch.channels_last)(images.clone() if copied else images)
        conv.zero_grad()
        (y * y.detach().cos()).sum().backward()
        results.append((y, gray.grad, conv.weight.grad, conv.bias.grad))
        assert y.is_contiguous(memory_format=torch.channels_last)
    for expected, *found in zip(*results, strict=True):
        assert all(torch.allclose(one, expected) for one in found)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_quick_mish_is_mish_for_every_bfloat16(layout: torch.memory_format) -> None:
    numbers = torch.arange(2**16).to(torch.uint16).view(torch.bfloat16)
    finite = numbers.float().abs() < 1e30
    x = numbers.view(4, 16, 32, 32).to(memory_format=layout).requires_grad_()
    y = QuickMish()(x)
    y.backward(torch.full_like(y, 2.0))
    assert y.dtype == torch.bfloat16
    assert torch.equal(y.detach().flatten()[finite], F.mish(numbers)[finite])
    assert y.flatten()[numbers.isnan()].isnan().all()
    exact = numbers.double()[finite].requires_grad_()
    (exact * torch.tanh(F.softplus(exact))).sum().backward()
    assert torch.allclose(x.grad.double().flatten()[finite], 2 * exact.grad, rtol=2**-8, atol=1e-6)


def test_quick_mish_leaves_other_precisions_to_mish() -> None:
    x = batch(2, 3, 4, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(QuickMish(), x)
    assert torch.equal(QuickMish()(x), F.mish(x))


def test_quick_mish_learns_after_a_prediction() -> None:
    quick_cnn._tables.cache_clear()
    x = batch(2, 3, 4, 5).bfloat16().requires_grad_()
    with torch.inference_mode():
        predicted = QuickMish()(x)
    y = QuickMish()(x)
    y.sum().backward()
    assert torch.equal(y, predicted) and x.grad.any()


@pytest.mark.parametrize("name", ["custom_cnn", "vit"])
def test_compiles_as_one_graph(name: str) -> None:
    model = models.build(name, image_size=96).eval()
    gray = batch(2, 1, 96, 96).expand(-1, 3, -1, -1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = torch.compile(model, fullgraph=True, backend="eager")(gray)
        assert torch.allclose(logits, model(gray), atol=0.02)

"""The three U-Nets: counts, sizes, gradients, layouts, attention maps."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import models
from models.attention_unet import AttentionGate
from models.layers import upsample
from models.quick_conv import QuickConv2d
from models.unet import pad
from utils.explain import attention_maps

UNETS = ("classic_unet", "improved_unet", "attention_unet")
COUNTS = {
    "classic_unet": {8: 344_227, 16: 1_375_043, 32: 5_496_451, 64: 21_978_371},
    "improved_unet": {8: 214_043, 16: 799_075, 32: 3_082_739, 64: 12_104_467},
    "attention_unet": {8: 225_287, 16: 843_319, 32: 3_258_263, 64: 12_803_671},
}

pytestmark = pytest.mark.usefixtures("one_thread")
every_unet = pytest.mark.parametrize("name", UNETS)


def make(name: str, n_filters: int = 8, **options: int) -> models.Model:
    torch.manual_seed(0)
    return models.build(name, n_filters=n_filters, **options)


def batch(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    model(images).square().mean().backward()
    return {key: parameter.grad for key, parameter in model.named_parameters()}


@every_unet
@pytest.mark.parametrize("n_filters", [8, 16, 32, 64])
def test_parameter_counts(name: str, n_filters: int) -> None:
    with torch.device("meta"):
        model = models.build(name, n_filters=n_filters)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name][n_filters]


@every_unet
def test_channels_are_options(name: str) -> None:
    model = make(name, in_channels=1, out_channels=5).eval()
    assert model(batch(1, 1, 32, 32)).shape == (1, 5, 32, 32)


@every_unet
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (37, 53), (33, 160), (240, 240)])
def test_any_size_in_the_same_size_out(name: str, size: tuple[int, int]) -> None:
    model = make(name, n_filters=2).eval()
    with torch.no_grad():
        logits = model(batch(1, 4, *size))
    assert logits.shape == (1, 3, *size)
    assert logits.dtype == torch.float32 and logits.isfinite().all()


@every_unet
def test_padding_is_zeros_at_the_right_and_the_bottom(name: str) -> None:
    model = make(name, n_filters=2).eval()
    images = batch(1, 4, 37, 53)
    padded = torch.zeros(1, 4, 48, 64)
    padded[..., :37, :53] = images
    with torch.no_grad():
        assert torch.equal(model(images), model(padded)[..., :37, :53])
    assert pad(padded, 16) is padded


@every_unet
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = make(name)
    trained = gradients(model, batch(2, 4, 32, 48))
    for key, gradient in trained.items():
        assert gradient is not None and gradient.isfinite().all(), key
    # In training the batch norm subtracts the depthwise bias again, so its true gradient is zero.
    cancelled = {f"{key}.bias" for key, module in model.named_modules() if getattr(module, "groups", 1) > 1}
    for key, gradient in trained.items():
        assert key in cancelled or gradient.any(), key
    for key, gradient in gradients(model.eval(), batch(2, 4, 32, 48)).items():
        assert gradient.any(), key


@every_unet
def test_no_module_stands_in_two_places(name: str) -> None:
    places = [id(module) for _, module in make(name).named_modules(remove_duplicate=False)]
    assert len(places) == len(set(places))


@every_unet
def test_channels_last_is_kept_and_changes_nothing(name: str) -> None:
    images = batch(2, 4, 48, 40)
    plain, last = make(name).eval(), make(name).eval().to(memory_format=torch.channels_last)
    logits = last(images.to(memory_format=torch.channels_last))
    assert torch.allclose(logits, plain(images), atol=1e-4)
    whole = last(images[..., :32].to(memory_format=torch.channels_last))
    assert whole.is_contiguous(memory_format=torch.channels_last)
    images = images.double()  # training on few pixels amplifies the rounding of float32
    expected = gradients(plain.double().train(), images)
    for key, gradient in gradients(last.double().train(), images.to(memory_format=torch.channels_last)).items():
        assert torch.allclose(gradient, expected[key]), key


@every_unet
def test_an_image_does_not_see_its_batch_in_eval_mode(name: str) -> None:
    model, images = make(name).eval(), batch(3, 4, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model(images)[1:2], model(images[1:2]), atol=1e-5)


@every_unet
def test_a_batch_is_learnt_by_heart(name: str) -> None:
    model, images = make(name), batch(4, 4, 32, 32)
    masks = torch.zeros(4, 3, 32, 32)
    for number in range(4):
        masks[number, number % 3, 4 * number : 4 * number + 12, 8:24] = 1
        images[number] += 2 * masks[number].sum(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(200):
        loss = F.binary_cross_entropy_with_logits(model(images), masks)
        losses.append(loss.item())
        if losses[-1] < losses[0] / 10:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pytest.fail(f"The loss only fell from {losses[0]:.3f} to {losses[-1]:.3f}")


@every_unet
def test_bf16_autocast_is_finite(name: str) -> None:
    model = make(name, n_filters=2)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(batch(2, 4, 16, 32))
    logits.float().square().mean().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.slow
@every_unet
def test_compiled_equals_eager(name: str) -> None:
    eager = make(name, n_filters=2).double()  # training on few pixels amplifies the rounding of float32
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True)
    images = batch(2, 4, 37, 32).double()
    expected = gradients(eager, images)
    for key, gradient in gradients(compiled, images).items():
        assert torch.allclose(gradient, expected[key.removeprefix("_orig_mod.")]), key
    assert torch.allclose(compiled(images), eager(images))


# ---- the quick convolution


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("out", "kernel", "groups"), [(12, 1, 1), (5, 7, 5)])
@pytest.mark.parametrize("size", [(1, 1), (3, 20), (17, 9)])
def test_quick_convolution_equals_the_slow_one(
    layout: torch.memory_format, out: int, kernel: int, groups: int, size: tuple[int, int]
) -> None:
    slow = nn.Conv2d(5, out, kernel, padding=kernel // 2, groups=groups)
    quick = QuickConv2d(5, out, kernel, padding=kernel // 2, groups=groups)
    quick.load_state_dict(slow.state_dict())
    images = batch(2, 5, *size).to(memory_format=layout)
    results = []
    for conv in (slow, quick):
        x = images.clone().requires_grad_()
        y = conv(x)
        (y * y.detach().cos()).sum().backward()
        results.append((y, x.grad, conv.weight.grad, conv.bias.grad))
    for expected, result in zip(*results, strict=True):
        assert torch.allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize(("out", "kernel", "groups"), [(16, 7, 16), (40, 1, 1)])
def test_quick_convolution_in_bfloat16_is_as_near_as_the_slow_one(out: int, kernel: int, groups: int) -> None:
    exact = nn.Conv2d(16, out, kernel, padding=kernel // 2, groups=groups)
    images = batch(2, 16, 12, 14).to(memory_format=torch.channels_last)
    found = {}
    for name, kind in (("exact", nn.Conv2d), ("slow", nn.Conv2d), ("quick", QuickConv2d)):
        conv = kind(16, out, kernel, padding=kernel // 2, groups=groups)
        conv.load_state_dict(exact.state_dict())
        x = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=name != "exact"):
            y = conv(x)
        (y.float() * y.detach().float().cos()).sum().backward()
        found[name] = [y.detach().float(), x.grad, conv.weight.grad, conv.bias.grad]
        assert y.dtype == (torch.float32 if name == "exact" else torch.bfloat16)
    for true, slow, quick in zip(*found.values(), strict=True):
        assert quick.dtype == slow.dtype
        assert (quick - true).norm() < 1.2 * (slow - true).norm() + 1e-3 * true.norm() < 0.05 * true.norm()


def test_quick_convolution_has_second_derivatives_and_can_be_frozen() -> None:
    conv = QuickConv2d(2, 2, 7, padding=3, groups=2).double()
    x = batch(1, 2, 4, 5).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, w, b: torch.func.functional_call(conv, {"weight": w, "bias": b}, x),
                                        (x, conv.weight, conv.bias))  # fmt: skip
    conv.weight.requires_grad_(False)
    conv(x).sum().backward()
    assert conv.weight.grad is None and conv.bias.grad is not None and x.grad is not None


# ---- gates and their maps


def test_gate_is_its_formula() -> None:
    torch.manual_seed(0)
    gate = AttentionGate(3)
    lower, skip = batch(2, 3, 4, 5), batch(2, 3, 8, 10)

    def pixelwise(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0], x) + conv.bias[:, None, None]

    def double(x: torch.Tensor) -> torch.Tensor:
        return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)(x)

    hidden = (pixelwise(gate.query, lower) + pixelwise(gate.key, skip[..., ::2, ::2])).clamp(min=0)
    attention = 1 / (1 + (-pixelwise(gate.score, hidden)).exp())
    assert torch.allclose(gate(lower, skip), double(lower) + double(attention) * skip, atol=1e-5)


def test_attention_differs_from_improved_by_its_gates_only() -> None:
    attention, improved = make("attention_unet").eval(), make("improved_unet").eval()
    fit = improved.load_state_dict(attention.state_dict(), strict=False)
    assert not fit.missing_keys
    assert all(key.startswith("joins.") for key in fit.unexpected_keys)
    for gate in attention.joins:  # a gate that is open everywhere adds the skip as it is
        nn.init.constant_(gate.score.bias, 100)
    images = batch(1, 4, 32, 32)
    with torch.no_grad():
        assert torch.allclose(attention(images), improved(images), atol=1e-5)


def test_maps_one_a_gate_finest_last() -> None:
    model = make("attention_unet").eval()
    maps = attention_maps(model, batch(2, 4, 160, 96))
    assert [tuple(one.shape) for one in maps] == [(2, 1, 160 // side, 96 // side) for side in (16, 8, 4, 2)]
    assert all(one.min() >= 0 and one.max() <= 1 and not one.requires_grad for one in maps)


@pytest.mark.parametrize("seed", range(3))
def test_new_gates_are_half_open_and_differ_between_places(seed: int) -> None:
    torch.manual_seed(seed)
    for one in attention_maps(models.build("attention_unet", n_filters=16).train(), batch(2, 4, 64, 64)):
        assert 0.2 < one.mean() < 0.8
        assert one.std() > 0.001


def test_the_gate_is_that_of_the_paper_without_its_strided_1x1() -> None:
    torch.manual_seed(0)
    gate, lower, skip = AttentionGate(8), batch(2, 8, 10, 12), batch(2, 8, 20, 24)
    key = F.conv2d(skip, gate.key.weight, gate.key.bias, stride=2)
    attention = gate.score(F.relu(gate.query(lower) + key)).sigmoid()
    expected = upsample(lower) + upsample(attention) * skip
    torch.testing.assert_close(gate(lower, skip), expected)
    # with fewer than 16 channels, its weight gradient breaks the memory of a CPU with AVX-512
    assert all(module.stride == (1, 1) for module in gate.modules() if isinstance(module, nn.Conv2d))


def test_maps_leave_the_model_as_it_was() -> None:
    model, images = make("attention_unet").train(), batch(2, 4, 32, 32)
    model.encoders[0].eval()  # a frozen part
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    untouched = copy.deepcopy(model)
    attention_maps(model, images)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(model(images), untouched(images))


def test_hooks_are_removed_when_forward_raises() -> None:
    model = make("attention_unet").train()
    with pytest.raises(RuntimeError):
        attention_maps(model, batch(2, 3, 32, 32))
    assert model.training and not any(module._forward_hooks for module in model.modules())


def test_maps_need_gates() -> None:
    with pytest.raises(ValueError, match="ImprovedUNet has no attention gates"):
        attention_maps(make("improved_unet"), batch(1, 4, 32, 32))


# ---- the registry


@every_unet
def test_build_remembers_name_and_all_options(name: str) -> None:
    model = make(name)
    assert type(model).__name__ == models.MODELS[name]
    assert model.name == name and model.options == {"in_channels": 4, "out_channels": 3, "n_filters": 8}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resunet", {}, "no model 'resunet'; the models are .*attention_unet"),
        ("classic_unet", {"width": 3}, "no option width; it has in_channels, out_channels, n_filters"),
        ("classic_unet", {"n_filters": 0}, "must be positive"),
    ],
)
def test_build_names_what_is_wrong(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.build(name, **options)

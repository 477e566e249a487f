"""What explanations claim, against computations by hand; and that they leave no trace in the model."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import models
from models.cnn import CNN, Conv, plain
from utils import explain

SMALLEST = {"custom_cnn": 69, "alexnet": 69, "vgg16": 32}
SIDE = 32


def tiny_cnn(seed: int = 0, widths: tuple[int, ...] = (16,), image_size: int = SIDE) -> CNN:
    torch.manual_seed(seed)
    convs = (Conv(8, 3, padding=1, pool=True), Conv(12, 3, padding=1, pool=True))
    return CNN(convs, plain, widths, nn.ReLU, 0.3, 3, 2, image_size)


def tiny_vit(seed: int = 0, **options: int) -> nn.Module:
    torch.manual_seed(seed)
    return models.build("vit", **{"image_size": SIDE, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 32} | options)


def batch(count: int, side: int = SIDE) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def planted(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy images (B, 3, 32, 32), classes (B,), 1 where an 8 x 8 square is bright, and where it is (B, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    where, classes = torch.zeros(count, SIDE, SIDE, dtype=torch.bool), torch.arange(count) % 2
    for mask, present in zip(where, classes, strict=True):
        y, x = (8 * torch.randint(SIDE // 8, (2,), generator=generator)).tolist()
        mask[y : y + 8, x : x + 8] = bool(present)
    images = 0.3 * torch.rand(count, 3, SIDE, SIDE, generator=generator) + 2.0 * where[:, None]
    return images, classes, where


def taught(model: nn.Module, steps: int) -> nn.Module:
    """The model after it has learnt to tell planted squares."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    for step in range(steps):
        images, classes, _ = planted(32, seed=step)
        F.cross_entropy(model(images), classes).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


# ---- Grad-CAM


def test_grad_cam_is_the_formula_of_the_paper() -> None:
    model, images = tiny_cnn().eval(), batch(3)
    for classes in (torch.tensor([0, 1, 1]), torch.tensor([1, 0, 0])):
        expected = []
        for image, of in zip(images, classes.tolist(), strict=True):
            found = model.features[:3](image[None]).detach().requires_grad_()  # (1, 12, 16, 16), behind the ReLU
            logit = model.classifier(model.features[3:](found))[0, of]
            (slope,) = torch.autograd.grad(logit, found)
            total = torch.zeros(16, 16)
            for channel in range(12):
                total += slope[0, channel].sum() / 256 * found[0, channel].detach()
            expected.append(F.interpolate(total.relu()[None, None], (SIDE, SIDE), mode="bilinear")[0, 0])
        assert all(one.max() > 0 for one in expected)
        maps = explain.grad_cam(model, images, classes)
        torch.testing.assert_close(maps, torch.stack([one / one.max() for one in expected]))


def test_grad_cam_is_empty_where_nothing_speaks_for_the_class() -> None:
    model = tiny_cnn(widths=())
    with torch.no_grad():
        model.classifier[-1].weight[0].fill_(-1)  # whatever the convolutions find, it speaks against class 0
        model.classifier[-1].weight[1].fill_(1)
    assert not explain.grad_cam(model, batch(2), torch.zeros(2, dtype=torch.long)).any()
    assert (explain.grad_cam(model, batch(2)).amax(dim=(1, 2)) == 1).all()


@pytest.mark.parametrize("name", SMALLEST)
def test_grad_cam_of_each_cnn(name: str) -> None:
    torch.manual_seed(0)
    side = SMALLEST[name]
    maps = explain.grad_cam(models.build(name, image_size=side), batch(2, side))
    assert maps.shape == (2, side, side) and maps.min() >= 0 and maps.max() <= 1


@pytest.mark.parametrize(("name", "options"), [("custom_cnn", {}), ("custom_cnn", {"residual": True}), ("alexnet", {}),
                                              ("vgg16", {})])  # fmt: skip
def test_receptive_fields_are_where_the_gradient_comes_from(name: str, options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model = models.build(name, image_size=224 if name == "vgg16" else 128, **options).eval()
    blocks = list(model.features)
    blocks = blocks[:-1] if isinstance(blocks[-1], nn.MaxPool2d) else blocks
    for module in model.features.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1e-3)
    # where a max-pool passes the gradient of one pixel, a mean passes that of all
    passing = nn.Sequential(*(nn.AvgPool2d(2) if isinstance(block, nn.MaxPool2d) else block for block in blocks))
    image = torch.rand(1, 3, *2 * [model.options["image_size"]], requires_grad=True)
    found = passing(image)
    place = found.shape[-1] // 2
    (slope,) = torch.autograd.grad(found[0, :, place, place].sum(), image)
    seen = slope[0, 0].nonzero().float()
    first, step = explain.receptive_field(blocks)
    assert ((seen.amin(dim=0) + seen.amax(dim=0)) / 2).tolist() == [first + place * step] * 2


# ---- integrated gradients


def test_integrated_gradients_of_a_linear_model_are_its_products() -> None:
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5)), batch(2, side=4)
    maps = explain.integrated_gradients(model, images, torch.tensor([3, 0]))
    weights = model[1].weight.detach().unflatten(1, (3, 4, 4))[[3, 0]]
    torch.testing.assert_close(maps, (weights * images).sum(dim=1))


@pytest.mark.parametrize("make", [tiny_cnn, tiny_vit])
def test_integrated_gradients_add_up_to_the_difference_of_logits(make: Callable[[], nn.Module]) -> None:
    model, images, classes = make(), 2 * batch(2), torch.tensor([1, 0])
    maps = explain.integrated_gradients(model, images, classes)
    with torch.no_grad():
        rise = (model.eval()(images) - model(torch.zeros_like(images)))[torch.arange(2), classes]
    assert rise.abs().min() > 0.1
    torch.testing.assert_close(maps.sum(dim=(1, 2)), rise, atol=0.02, rtol=0.02)


# ---- rollout


def test_rollout_is_the_product_by_hand() -> None:
    model, images = tiny_vit(patch_size=16), batch(2)  # four patches: each corner pixel is in one of its own
    first, second = explain.token_attention(model, images)
    maps = explain.rollout(model, images)
    for number in range(2):
        one, two = (found[number].mean(dim=0).tolist() for found in (first, second))
        for found in (one, two):
            for token in range(5):
                found[token] = [0.5 * value + 0.5 * (other == token) for other, value in enumerate(found[token])]
        reach = [sum(two[0][k] * one[k][patch] for k in range(5)) for patch in range(1, 5)]
        corners = [maps[number, y, x].item() for y in (0, -1) for x in (0, -1)]
        assert corners == pytest.approx([value / max(reach) for value in reach])


# ---- a square that alone decides


def test_maps_find_the_square_that_decides() -> None:
    model = taught(tiny_cnn(), steps=60)
    images, classes, where = planted(16, seed=1000)
    assert torch.equal(model(images).argmax(dim=1), classes)
    images, where = images[classes == 1], where[classes == 1]
    around = F.max_pool2d(where[:, None].float(), 9, stride=1, padding=4)[:, 0] > 0  # Grad-CAM is coarse: 4 pixels more
    for maps, inside in (
        (explain.grad_cam(model, images), around),
        (explain.integrated_gradients(model, images).clamp(min=0), where),
    ):
        share = (maps * inside).sum(dim=(1, 2)) / maps.sum(dim=(1, 2))
        assert share.min() > 0.75


def test_rollout_finds_the_square_that_decides() -> None:
    model = taught(tiny_vit(patch_size=8), steps=100)
    images, classes, where = planted(16, seed=1000)
    assert torch.equal(model(images).argmax(dim=1), classes)
    maps = explain.rollout(model, images[classes == 1])
    share = (maps * where[classes == 1]).sum(dim=(1, 2)) / maps.sum(dim=(1, 2))
    assert share.min() > 3 / 16  # the square is a sixteenth of the image; a block passes on half of all it gets


# ---- no trace


@pytest.mark.parametrize(
    ("function", "make"),
    [
        (explain.grad_cam, tiny_cnn),
        (explain.integrated_gradients, tiny_cnn),
        (explain.integrated_gradients, tiny_vit),
        (explain.rollout, tiny_vit),
    ],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_the_model_and_the_images_are_left_as_they_were(
    function: Callable[..., torch.Tensor], make: Callable[[], nn.Module], frozen: bool
) -> None:
    model, images = make().train().requires_grad_(not frozen), batch(2)
    next(model.children()).eval()
    if not frozen:
        model(images).sum().backward()
    before, kept = copy.deepcopy(model), images.clone()
    gradients = [None if weight.grad is None else weight.grad.clone() for weight in model.parameters()]
    maps = function(model, images)
    assert maps.shape == (2, SIDE, SIDE) and not maps.requires_grad
    assert torch.equal(images, kept) and not images.requires_grad
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    for now, then, gradient in zip(model.parameters(), before.parameters(), gradients, strict=True):
        assert torch.equal(now, then) and now.requires_grad is not frozen
        assert now.grad is None if gradient is None else torch.equal(now.grad, gradient)
    for now, then in zip(model.buffers(), before.buffers(), strict=True):
        assert torch.equal(now, then)


def test_predicted_classes_are_explained_unless_others_are_asked_for() -> None:
    model, images = tiny_cnn().eval(), batch(4)
    predicted = model(images).argmax(dim=1)
    for function in (explain.grad_cam, explain.integrated_gradients):
        assert torch.equal(function(model.train(), images), function(model, images, predicted))
        assert not torch.allclose(function(model, images), function(model, images, 1 - predicted))


def test_what_a_model_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the CNNs"):
        explain.grad_cam(tiny_vit(), batch(1))
    with pytest.raises(ValueError, match="no tokens"):
        explain.rollout(tiny_cnn(), batch(1))

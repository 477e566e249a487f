"""Augmentation moves image and mask together, and is a function of its generator."""

import pytest
import torch

from datasets.augment import Augmentation, Draw, ImageAugmentation, affine_grid, prepare


def draw(seed: int, batch: int) -> Draw:
    return Draw(torch.Generator().manual_seed(seed), batch)


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose channels are the mask's value, blurred by nothing: where they go, the mask must go."""
    masks = torch.zeros(size, 40, 56, dtype=torch.uint8)
    masks[:, 8:20, 10:30] = 1
    masks[:, 14:20, 16:44] = 2
    return masks[:, None].float().repeat(1, 2, 1, 1), masks


GEOMETRY = Augmentation(contrast=0, brightness=0, gamma=0)


def test_image_and_mask_move_together() -> None:
    images, masks = batch()
    moved, labels = GEOMETRY(images, masks, draw(0, len(masks)))
    assert labels.dtype == masks.dtype and labels.shape == masks.shape
    assert not torch.equal(labels, masks)
    inside = moved[:, 0] == moved[:, 0].round()  # away from edges, where the image is interpolated
    assert inside.float().mean() > 0.8
    assert (moved[:, 0].round().long() == labels)[inside].float().mean() > 0.995


def test_a_rotation_keeps_shapes_in_a_window_that_is_no_square() -> None:
    masks = torch.zeros(16, 160, 192, dtype=torch.uint8)
    masks[:, 60:100, 76:116] = 1  # a centred square of 40 x 40
    turn = Augmentation(rotation=45, scale=0, shift=0, contrast=0, brightness=0, gamma=0)
    _, turned = turn(masks[:, None].float(), masks, draw(1, len(masks)))
    areas = turned.sum(dim=(1, 2)).float()
    assert ((areas / 1600 - 1).abs() < 0.02).all()  # a shear would keep the area, too; its extent it would not
    rows, columns = turned.amax(dim=2).sum(dim=1), turned.amax(dim=1).sum(dim=1)
    assert ((rows - columns).abs() <= 2).all()


@pytest.mark.parametrize("recipe", [Augmentation, ImageAugmentation])
def test_a_shift_is_a_share_of_half_the_side(recipe: type[Augmentation]) -> None:
    images = torch.zeros(64, 1, 100, 200, dtype=torch.uint8)
    images[:, :, 50, 100] = 64
    still = recipe(rotation=0, scale=0, shift=0.2, flip=None, contrast=0, brightness=0, gamma=0)
    moved, _ = still(images, torch.zeros(64, 100, 200, dtype=torch.uint8), draw(0, 64))
    y, x = (moved[:, 0].sum(dim=axis) for axis in (2, 1))  # where the point has gone, between two pixels
    down = (y * torch.arange(100)).sum(1) / y.sum(1) - 50
    across = (x * torch.arange(200)).sum(1) / x.sum(1) - 100
    assert 9 < down.abs().max() <= 10.01 and 18 < across.abs().max() <= 20.01
    assert down.min() < -5 and across.max() > 10


def gray(size: int = 8) -> torch.Tensor:
    levels = torch.randint(0, 256, (size, 1, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    levels[:, :, :10] = 0
    return levels


def test_images_keep_equal_channels_and_their_class() -> None:
    images, classes = gray(), torch.arange(8)
    changed, same = ImageAugmentation()(images, classes, draw(0, 8))
    assert same is classes and changed.shape == (8, 3, 40, 56) and changed.dtype == torch.float32
    assert torch.equal(changed[:, 0], changed[:, 2]) and not torch.allclose(changed, prepare(images), atol=0.05)
    flip = ImageAugmentation().times(0)
    for one, other in zip(flip(images, classes, draw(1, 8))[0], prepare(images), strict=True):  # left and right only
        assert torch.allclose(one, other, atol=1e-3) or torch.allclose(one, other.flip(-1), atol=1e-3)


def test_looking_levels_up_is_working_them_out_for_each_pixel() -> None:
    images, how = gray(40), ImageAugmentation()  # in parts of 16
    found, _ = how(images, torch.arange(40), draw(2, 40))
    expected, _ = Augmentation(**vars(how))(prepare(images)[:, :1], images[:, 0], draw(2, 40))
    torch.testing.assert_close(found[:, :1], expected, rtol=0, atol=1e-5)


def test_a_strength_multiplies_all_limits_but_the_flip() -> None:
    assert ImageAugmentation(rotation=10, scale=0.4).times(0.5) == ImageAugmentation(5, 0.2, 0.04, -1, 0.1, 0.1, 0.1)
    assert ImageAugmentation().times(0) == ImageAugmentation(0, 0, 0, -1, 0, 0, 0)


def test_the_grid_is_pytorchs_own() -> None:
    maps = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.affine_grid(maps, [3, 1, 40, 56], align_corners=False)
    torch.testing.assert_close(affine_grid(maps, 40, 56), expected, rtol=0, atol=1e-6)


def test_the_same_generator_gives_the_same_batch() -> None:
    images, masks = batch()
    one, two, other = (Augmentation()(images, masks, draw(seed, len(masks))) for seed in (3, 3, 4))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert not torch.equal(one[0], other[0])


def test_contrast_leaves_background_and_masks() -> None:
    images, masks = batch()
    still = Augmentation(rotation=0, scale=0, shift=0, flip=None)
    changed, labels = still(images, masks, draw(0, len(masks)))
    assert torch.equal(labels, masks)
    assert (changed[images == 0].abs() < 1e-5).all()
    assert not torch.allclose(changed, images, atol=1e-2)


def test_flips_go_left_and_right_only() -> None:
    images, masks = batch(16)
    flip = Augmentation(rotation=0, scale=0, shift=0, contrast=0, brightness=0, gamma=0)
    _, labels = flip(images, masks, draw(0, len(masks)))
    kinds = {("same" if torch.equal(one, masks[0]) else "flipped" if torch.equal(one, masks[0].flip(0)) else "?")
             for one in labels}  # fmt: skip
    assert kinds == {"same", "flipped"}

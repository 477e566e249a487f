"""Augmentation moves image and mask together, and is a function of its generator."""

import torch

from datasets.augment import Augmentation, Draw, affine_grid


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

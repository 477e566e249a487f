"""Augmentation, batched on the device: one affine map and one change of contrast a sample, image and mask together.

The random numbers come from a generator that the caller seeds with (seed, epoch, step), so that a resumed run sees
what the uninterrupted one would have.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F

PART = 16  # images that a CPU changes at once: what is made of them stays in its cache, and takes a fifth less time


class Draw:
    """The random numbers of some samples of a batch, drawn for the whole batch: on every device, and in each of
    several processes that have a part of the batch, a sample gets the same.

    Args:
        generator: of the CPU.
        batch: samples of the whole batch.
        mine: those that are changed here.
    """

    def __init__(self, generator: torch.Generator, batch: int, mine: slice = slice(None)) -> None:
        self.generator, self.batch, self.mine = generator, batch, mine

    def uniform(self, limit: float, *shape: int) -> torch.Tensor:
        """Numbers between -limit and limit, (samples, *shape)."""
        return ((2 * torch.rand(self.batch, *shape, generator=self.generator) - 1) * limit)[self.mine]


@dataclass(frozen=True)
class Augmentation:
    """How far a sample may be changed; the defaults are the recipe of the U-Nets."""

    rotation: float = 20.0  # degrees, either way
    scale: float = 0.2  # relative, either way
    shift: float = 0.05  # of half the side, either way
    flip: int | None = -2  # the axis that runs from left to right: the first of a slice in BraTS order
    contrast: float = 0.2  # relative change of each modality's intensities
    brightness: float = 0.2  # added to each modality inside the brain, standard deviations
    gamma: float = 0.2  # bends each modality's intensities: sign(x) |x|^(1 + g)

    def __call__(self, images: torch.Tensor, masks: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Change a batch.

        Args:
            images: (B, C, H, W) of any float type, background 0; they come back as float32.
            masks: (B, H, W) integer label map.
            draw: the random numbers of these samples.
        """
        images = images.float()
        grid = affine_grid(self._affine(images, draw), *images.shape[-2:])
        changed = F.grid_sample(self._contrast(images, draw), grid, align_corners=False)
        moved = F.grid_sample(masks[:, None].float(), grid, mode="nearest", align_corners=False)
        return changed, moved[:, 0].to(masks.dtype)

    def times(self, strength: float) -> Self:
        """The same with all limits multiplied; the flip stays."""
        limits = {name: value * strength for name, value in vars(self).items() if name != "flip"}
        return replace(self, **limits)

    def _affine(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        """(B, 2, 3) maps from output to input in the normalised coordinates of `affine_grid` (x = W, y = H)."""
        batch, _, height, width = images.shape
        angle, zoom = draw.uniform(math.radians(self.rotation)), 1 + draw.uniform(self.scale)
        flip = torch.where(draw.uniform(1.0) > 0, 1.0, -1.0) if self.flip else torch.ones(batch)
        fx, fy = (flip, torch.ones(batch)) if self.flip == -1 else (torch.ones(batch), flip)
        cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        aspect = height / width  # x and y are normalised by different lengths
        across, down = draw.uniform(self.shift), draw.uniform(self.shift)
        rows = [cos * fx, -sin * aspect * fy, across, sin / aspect * fx, cos * fy, down]
        return torch.stack(rows, dim=1).view(batch, 2, 3).to(images.device, non_blocking=True)

    def _contrast(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        def uniform(limit: float) -> torch.Tensor:
            return draw.uniform(limit, images.shape[1], 1, 1).to(images.device, non_blocking=True)

        gain, offset, bend = 1 + uniform(self.contrast), uniform(self.brightness), 1 + uniform(self.gamma)
        sign = images.sign()  # 0 in the background, which stays 0
        powers = images.abs().clamp_min_(1e-6).log_().mul_(bend).exp_()  # `pow` takes three times as long on a CPU
        return powers.mul_(gain).addcmul_(sign, offset).mul_(sign)


def affine_grid(maps: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`F.affine_grid`, quicker on a CPU: what x and what y contribute is added, not a product of thin matrices.

    Args:
        maps: (B, 2, 3) from output to input.

    Returns:
        (B, height, width, 2) for `grid_sample(..., align_corners=False)`, both planes contiguous.
    """
    x, y = (torch.linspace(-1, 1, size, device=maps.device) * (size - 1) / size for size in (width, height))
    across = maps[:, :, 0, None] * x  # (B, 2, W)
    down = maps[:, :, 1, None] * y + maps[:, :, 2, None]  # (B, 2, H)
    return (across[:, :, None, :] + down[:, :, :, None]).permute(0, 2, 3, 1)


def prepare(images: torch.Tensor) -> torch.Tensor:
    """Gray levels (B, 1, H, W), 0 to 255 -> what a classifier takes: (B, 3, H, W) float of mean square near 1.

    Background stays 0: what convolutions see beyond the edge, and what augmentation fills in.
    """
    return (images.float() / 64).expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class ImageAugmentation(Augmentation):
    """The same for gray images that have a class instead of a mask; the defaults are the recipe of the classifiers.

    A gray image of 8 bits has 256 levels: what becomes of each is worked out once a sample, and looked up.
    """

    rotation: float = 15.0
    scale: float = 0.15
    shift: float = 0.08
    flip: int | None = -1

    def __call__(self, images: torch.Tensor, classes: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Change a batch.

        Args:
            images: (B, 1, H, W) uint8 gray levels, background 0; they come back as `prepare` makes them, changed.
            classes: (B,), returned as they are.
            draw: the random numbers of these samples.
        """
        maps = self._affine(images, draw)
        levels = torch.arange(256, device=images.device).expand(len(images), 1, 1, 256)
        tables = self._contrast(prepare(levels)[:, :1], draw).flatten(1)
        part = PART if images.device.type == "cpu" else len(images)
        parts = zip(images.split(part), tables.split(part), maps.split(part), strict=True)
        return torch.cat([look_up_and_move(*some) for some in parts]).expand(-1, 3, -1, -1), classes


def look_up_and_move(images: torch.Tensor, tables: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Images (B, 1, H, W) uint8 whose levels become those of `tables` (B, 256), moved by `maps` (B, 2, 3)."""
    looked_up = tables.gather(1, images.flatten(1).long()).view(images.shape)
    return F.grid_sample(looked_up, affine_grid(maps, *images.shape[-2:]), align_corners=False)

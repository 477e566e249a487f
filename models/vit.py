"""VisionTransformer: an image as a sentence of patches.

Dosovitskiy 2020, arXiv 2010.11929; attention is that of Vaswani 2017, arXiv 1706.03762, normalisation comes first.
Smaller than the sizes of the paper; it drops whole patches, not single numbers; a normalisation more, at the start of
the head.
"""

import torch
from torch import nn
from torch.nn import functional as F

from models.base import Model


class VisionTransformer(Model):
    """(B, in_channels, image_size, image_size) -> logits (B, num_classes); 21.5 million parameters.

    Args:
        patch_size: pixels along a side of a patch; image_size must be a multiple of it.
        dim: width of a token; it must be a multiple of `heads`.
        mlp_dim: hidden width of the two linear layers in each block.
        patch_dropout: share of the patches that an image goes without in training, drawn anew each time: half of the
            work, and augmentation (Liu 2022, arXiv 2208.07220).

    Raises:
        ValueError: the numbers do not go together.
    """

    def __init__(
        self, in_channels: int = 3, num_classes: int = 4, image_size: int = 128, patch_size: int = 16, dim: int = 512,
        depth: int = 10, heads: int = 8, mlp_dim: int = 1024, patch_dropout: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__()
        if min(in_channels, num_classes, patch_size, dim, depth, heads, mlp_dim) < 1:
            raise ValueError("All sizes must be positive.")
        if not 0 <= patch_dropout < 1:
            raise ValueError("patch_dropout must be at least 0 and less than 1.")
        if image_size < patch_size or image_size % patch_size:
            raise ValueError(f"image_size {image_size} is not a multiple of patch_size {patch_size}: take one that is.")
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of heads {heads}: take one that is.")
        patches = (image_size // patch_size) ** 2
        self.kept = max(1, round(patches * (1 - patch_dropout)))
        self.patches = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 1 + patches, dim) * 0.02)
        self.blocks = nn.Sequential(*(Block(dim, heads, mlp_dim) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, in_channels, image_size, image_size) -> logits (B, num_classes)."""
        x = self.patches(images).flatten(2).transpose(1, 2)  # (B, patches, dim)
        x = self.drop_patches(x + self.positions[:, 1:])
        first = self.class_token + self.positions[:, :1]
        x = torch.cat([first.expand(len(x), -1, -1), x], dim=1)
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0])

    def drop_patches(self, patches: torch.Tensor) -> torch.Tensor:
        """A random choice of each image's patches, (B, patches, dim) -> (B, kept, dim); all, except in training."""
        batch, count, dim = patches.shape
        if not self.training or self.kept == count:
            return patches
        drawn = torch.rand(batch, count, device=patches.device).argsort(dim=1)[:, : self.kept, None]
        return patches.gather(1, drawn.expand(-1, -1, dim))


class Block(nn.Module):
    """Attention between the tokens, then thinking in each: (B, T, dim) -> (B, T, dim)."""

    def __init__(self, dim: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Multi-head self-attention: (B, T, dim) -> (B, T, dim). `utils.explain` reads its maps from query and key."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.split(self.qkv(x))
        mixed = attend(query, key, value)  # (B, heads, T, dim / heads)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, T, 3 dim) to query, key and value, each (B, heads, T, dim / heads)."""
        return qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Each token's mean of the values, weighted by how well its query fits their keys; all (B, heads, T, width).

    On a CPU as two products: for 65 tokens in bfloat16 the fused kernel takes six times as long, with its gradient.
    """
    if not query.is_cpu:
        return F.scaled_dot_product_attention(query, key, value)
    return attention_weights(query, key) @ value


def attention_weights(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """How much each token (row) looks at each other one: (B, heads, T, T), rows sum to 1."""
    return (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1)

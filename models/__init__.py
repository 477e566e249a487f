"""Plain PyTorch models for brain-tumor MRI: one architecture a file, no training code, logits out.

    model = models.build("attention_unet", n_filters=16)    # new
    model = models.load("AttentionUNet")                    # published, from models/saved_models
    model = models.load("runs/mine/AttentionUNet.safetensors")
"""

from models.base import Model
from models.registry import MODELS, build
from models.weights import find, load, load_into, noted, read_header, recorded, round_as_saved, save

__all__ = [
    "MODELS", "Model", "build", "find", "load", "load_into", "noted", "read_header", "recorded", "round_as_saved",
    "save",
]  # fmt: skip

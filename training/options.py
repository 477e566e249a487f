"""The options of the training scripts. Their defaults are the full-size recipes.

Only the standard library is imported here, so that --help answers at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class UNetOptions:
    """U-Nets on BraTS 2020, on a GPU."""

    model: Literal["classic_unet", "improved_unet", "attention_unet"] = "attention_unet"
    n_filters: int = 32
    """Channels of the first level; each of the four levels doubles them."""
    data: Path = ROOT / "datasets" / "segmentation"
    """Folder with BraTS cases: NIfTI (2018-2023, Decathlon) or Kaggle's HDF5 slices."""
    labels: Literal["2021", "2023", "msd"] | None = None
    """What label values mean; the default follows from the files' names."""
    modalities: tuple[str, str, str, str] = ("t1", "t1c", "t2", "flair")
    """Order of the channels in HDF5 slices."""
    window: tuple[int, int] = (160, 192)
    """Voxels of the crop around the brain; 240 240 is the whole slice."""
    cache: Path = ROOT / "datasets" / "cache"
    """Where the decoded data are kept: a fast local disk, about 40 MB a patient."""
    tumour_free: float = 0.1
    """Share of slices without tumour in an epoch of training; they are drawn anew each epoch."""

    split: Literal["patient", "slice"] = "patient"
    """slice is the leaky shuffle of older projects: for comparison only, and labelled so."""
    fold: int | None = None
    """Test on this fold (from 0) instead of a share of the patients."""
    folds: int = 5
    val: float = 0.15
    """Share of the patients (of those outside the tested fold) to watch the training on; may be 0."""
    test: float = 0.2
    """Share of the patients to test on, where there is no fold."""

    epochs: int = 40
    batch_size: int = 16
    lr: float = 2e-3
    weight_decay: float = 1e-2
    loss: Literal["dice_bce", "bce"] = "dice_bce"
    accumulate: int = 1
    """Cut each batch into so many parts, to save memory (Dice and batch norm then see the parts)."""
    ema: float = 0.99
    """Decay of the averaged weights, which are the ones published."""
    init: str | None = None
    """Start from these weights (a file, or a name in models/saved_models): fine-tuning."""
    seed: int = 0

    name: str | None = None
    """Folder under runs/ (or an absolute path); the default says model, width and fold."""
    resume: bool = False
    """Insist on going on with a run; one of the same name is gone on with anyway."""
    save_every: float = 10.0
    """Minutes between two checkpoints within an epoch."""
    evaluate: str | None = None
    """Train nothing: score these weights (a file or name) on the patients of --data that they were not trained on."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    def __post_init__(self) -> None:
        """Raises ValueError for a number that makes no training."""
        for name in ("n_filters", "folds", "epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be 1 or more")
        for name in ("tumour_free", "val", "test", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must lie between 0 and 1")
        if self.split == "slice" and self.fold is not None:
            raise ValueError("--split slice has no folds: leave --fold out")

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        if self.name or self.evaluate:
            return ROOT / "runs" / (self.name or f"evaluate_{Path(str(self.evaluate)).stem}")
        fold = "" if self.fold is None else f"_fold{self.fold}of{self.folds}"
        leaky = "_leaky" if self.split == "slice" else ""
        return ROOT / "runs" / f"{self.model}_{self.n_filters}{fold}{leaky}"

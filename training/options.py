"""The options of the training scripts. Their defaults are the full-size recipes.

Only the standard library is imported here, so that --help answers at once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every training script has."""

    model: str
    data: Path
    cache: Path = ROOT / "datasets" / "cache"
    """Where the decoded data are kept: a fast local disk."""

    fold: int | None = None
    """Test on this fold of the patients, counted from 0."""
    folds: int = 5
    val: float = 0.15
    """Share of the patients to watch the training on; may be 0. In a fold: of those that are not tested on; of images:
    one part in n, the n nearest."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    accumulate: int = 1
    """Cut each batch into so many parts, to save memory (batch norm and Dice then see the parts)."""
    ema: float = 0.99
    """Decay of the averaged weights, which are the ones published."""
    init: str | None = None
    """Start from these weights (a file, or a name in models/saved_models): fine-tuning."""
    seed: int = 0

    name: str | None = None
    """Folder under runs/ (or an absolute path); the default says model and split."""
    resume: bool = False
    """Insist on going on with a run; one of the same name is gone on with anyway."""
    save_every: float = 10.0
    """Minutes between two checkpoints within an epoch."""
    evaluate: str | None = None
    """Train nothing: score these weights (a file or name) on what they have not seen of --data."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    SHARES: ClassVar[tuple[str, ...]] = ("val", "ema")

    def __post_init__(self) -> None:
        """Raises ValueError for a number that makes no training."""
        for name in ("data", "cache", "init", "evaluate"):  # a relative path is another one tomorrow
            value = getattr(self, name)
            if isinstance(value, Path) or (value and Path(value).suffix):  # else the name of published weights
                object.__setattr__(self, name, type(value)(Path.cwd() / value))
        for name, value in vars(self).items():
            option = f"--{name.replace('_', '-')}"
            if name in ("n_filters", "image_size", "folds", "epochs", "batch_size", "accumulate") and value < 1:
                raise ValueError(f"{option} is {value}: it must be 1 or more")
            if name in ("lr", "weight_decay", "seed", "save_every") and not 0 <= value < math.inf:
                raise ValueError(f"{option} is {value}: it must be finite and not negative")
            if name in self.SHARES and not 0 <= value <= 1:
                raise ValueError(f"{option} is {value}: it must lie between 0 and 1")
        if self.ema == 1:
            raise ValueError("--ema is 1: the averaged weights would stay the initial ones")
        if self.fold is not None:
            from datasets.splits import check_fold  # imports NumPy, which --help does without

            check_fold(self.fold, self.folds)
        self.check()
        if self.fold is None and self.folds != Options.folds:
            other = "leave it out, or say which of them to test on, with another --name"
            raise ValueError(f"--folds is {self.folds}, without --fold: {other}")

    def check(self) -> None:
        """Raises ValueError for options that do not go together."""

    @property
    def architecture(self) -> Mapping[str, Any]:
        """The options that the model is built with."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """The default name of a run."""
        raise NotImplementedError

    @property
    def part(self) -> str:
        """The fold, as the end of a name; "" where there is none."""
        return "" if self.fold is None else f"_fold{self.fold}of{self.folds}"

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        default = f"evaluate_{Path(self.evaluate).stem}_{self.data.name}" if self.evaluate else self.title
        return ROOT / "runs" / (self.name or default)


@dataclass(frozen=True, kw_only=True)
class UNetOptions(Options):
    """U-Nets on BraTS; the defaults are for all of BraTS 2020 and a GPU."""

    model: Literal["classic_unet", "improved_unet", "attention_unet"] = "attention_unet"
    n_filters: int = 32
    """Channels of the first level; each of the next three doubles them."""
    data: Path = ROOT / "datasets" / "segmentation"
    """Folder with BraTS cases: NIfTI (2018-2023, Decathlon) or Kaggle's HDF5 slices."""
    labels: Literal["2021", "2023", "msd"] | None = None
    """What label values mean; the default follows from the files' names."""
    modalities: tuple[str, str, str, str] = ("t1", "t1c", "t2", "flair")
    """Order of the channels in HDF5 slices."""
    window: tuple[int, int] = (160, 192)
    """Voxels of the crop around the brain; 240 240 is the whole slice."""
    tumour_free: float = 0.1
    """Share of slices without tumour in an epoch of training; they are drawn anew each epoch."""

    split: Literal["patient", "slice"] = "patient"
    """slice is the leaky shuffle of older projects: for comparison only, and labelled so."""
    test: float = 0.2
    """Share of the patients to test on, where there is no fold."""

    epochs: int = 40
    batch_size: int = 16
    lr: float = 2e-3
    weight_decay: float = 1e-2
    loss: Literal["dice_bce", "bce"] = "dice_bce"

    SHARES: ClassVar[tuple[str, ...]] = ("tumour_free", "val", "test", "ema")

    def check(self) -> None:
        if self.split == "slice" and self.fold is not None:
            raise ValueError("--split slice has no folds: leave --fold out")

    @property
    def architecture(self) -> Mapping[str, Any]:
        return {"n_filters": self.n_filters}

    @property
    def title(self) -> str:
        return f"{self.model}_{self.n_filters}{self.part}{'_leaky' if self.split == 'slice' else ''}"


@dataclass(frozen=True, kw_only=True)
class ImageOptions(Options):
    """Classifiers on the Brain Tumor MRI Dataset."""

    data: Path = ROOT / "datasets" / "classification"
    """Folder with Training/ and Testing/, each with the folders glioma, meningioma, notumor and pituitary."""
    image_size: int = 128
    """Pixels along a side, after the crop to the head."""

    split: Literal["official", "patient"] = "official"
    """official tests on Testing, as everybody does (its patients are in Training too); patient keeps them apart."""

    augment: float = 1.0
    """Strength of the augmentation: 0 only mirrors, 1 is the recipe of the CNNs."""
    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes (Szegedy 2015, arXiv 1512.00567)."""
    mirror: bool = True
    """Score the mean of the logits of an image and its mirror image."""
    temperature: float | None = None
    """Divide the logits by this for calibrated probabilities; by default it is fitted on the validation part, of
    which the weights of --init must not know all: else theirs stays."""

    SHARES: ClassVar[tuple[str, ...]] = ("val", "ema", "augment", "label_smoothing")

    def check(self) -> None:
        if self.split == "official" and self.fold is not None:
            raise ValueError("--split official has no folds: take --split patient, or leave --fold out")
        if self.split == "patient" and self.fold is None:
            raise ValueError("--split patient needs to know which fold to test on: add --fold 0 (or 1, 2, ...)")
        if self.val > 0.5:
            raise ValueError(f"--val is {self.val}: at most half of the images can be watched")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"--temperature is {self.temperature}: it must be above 0")

    @property
    def title(self) -> str:
        return f"{self.model}{self.part}"

    @property
    def architecture(self) -> Mapping[str, Any]:
        return {"image_size": self.image_size}


@dataclass(frozen=True, kw_only=True)
class CNNOptions(ImageOptions):
    """CNNs on the Brain Tumor MRI Dataset; by default each has its own recipe."""

    model: Literal["custom_cnn", "alexnet", "vgg16"] = "custom_cnn"
    residual: bool = False
    """Skip connections around the convolutions (custom_cnn only)."""
    epochs: int = 0
    """0 is the model's own: 60 for custom_cnn and alexnet, 30 for vgg16."""
    batch_size: int = 64
    lr: float = 0.0
    """0 is the model's own: 1e-3 for custom_cnn, 5e-4 for alexnet, 2e-4 for vgg16."""
    weight_decay: float = 5e-2

    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "custom_cnn": {"epochs": 60, "lr": 1e-3},
        "alexnet": {"epochs": 60, "lr": 5e-4},
        "vgg16": {"epochs": 30, "lr": 2e-4},
    }

    def __post_init__(self) -> None:
        for name, value in self.RECIPES.get(self.model, self.RECIPES["custom_cnn"]).items():  # or one of your own
            if not getattr(self, name):
                object.__setattr__(self, name, value)  # frozen for everybody else
        super().__post_init__()

    def check(self) -> None:
        super().check()
        if self.residual and self.model != "custom_cnn":
            raise ValueError(f"--residual is an option of custom_cnn, not of {self.model}: leave it out")

    @property
    def architecture(self) -> Mapping[str, Any]:
        return {"image_size": self.image_size} | ({"residual": True} if self.residual else {})


@dataclass(frozen=True, kw_only=True)
class ViTOptions(ImageOptions):
    """The VisionTransformer on the Brain Tumor MRI Dataset."""

    model: Literal["vit"] = "vit"
    epochs: int = 45
    batch_size: int = 64
    optimizer: Literal["adamw", "muon"] = "muon"
    """muon: Muon (Jordan 2024) for the weights of all linear layers but the last, AdamW for all others."""
    lr: float = 1e-3
    weight_decay: float = 5e-2
    augment: float = 0.3

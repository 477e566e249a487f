"""What our U-Nets are to be compared with: the same patients, epochs, data path and scoring, other methods.

    python benchmarks/segmentation_references.py --data FOLDER --fold 0 --folds 3 --methods basic_unet segresnet

threshold     FLAIR and T1c thresholds, chosen on the training patients: what needs no network
basic_unet    MONAI's BasicUNet, trained with our recipe
segresnet     MONAI's 2-D SegResNet (Myronenko 2018, arXiv 1810.11654), trained with our recipe
predecessor   ClassicUNet as many public projects train it: 240 x 240, each slice min-max scaled, cross-entropy, Adam
              2e-3 with weight decay 1e-2, learning rate x 0.9 an epoch, no augmentation, last weights
predecessor_adamw   the same with AdamW, whose weight decay is no part of the gradient

Results go to runs/reference_METHOD...; finished ones are not repeated.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.options import ROOT, UNetOptions
from utils import cli

Method = Literal["threshold", "basic_unet", "segresnet", "predecessor", "predecessor_adamw"]


@dataclass(frozen=True, kw_only=True)
class Options(UNetOptions):
    """The recipe of `training/unet_training.py`, for other methods."""

    methods: tuple[Method, ...] = get_args(Method)

    @property
    def folder(self) -> Path:
        """runs/reference_METHOD, each method its own."""
        return super().folder if self.name else ROOT / "runs" / "references"


def main(options: Options) -> None:
    from benchmarks import references

    for name in ("name", "model", "init", "resume", "evaluate"):
        if getattr(options, name) != getattr(Options, name):
            raise ValueError(f"--{name} is not an option of these methods: leave it out (each has its own folder, "
                             "runs/reference_METHOD; remove that to start anew)")  # fmt: skip
    for method in options.methods:
        references.run(method, replace(options, name=f"reference_{method}{options.part}"))


if __name__ == "__main__":
    cli.main(main, Options, __doc__)

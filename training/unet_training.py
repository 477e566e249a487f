"""Train and evaluate a U-Net on multimodal brain MRI.

    python training/unet_training.py                                  # BraTS in datasets/segmentation, full-size recipe
    python training/unet_training.py --model classic_unet --n-filters 16 --epochs 14 --fold 0 --folds 3
    python training/unet_training.py --evaluate AttentionUNet --data FOLDER

Results go to runs/NAME: weights (safetensors), history.csv, patients.csv, metrics.csv, results.md, curves and overlay.
Started again with the same name, a run goes on where it stopped. Without data the built-in phantom is used.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this script's own project, wherever it is started

from training.options import UNetOptions
from utils import cli


def main(options: UNetOptions) -> None:
    from training import segmentation, stages  # torch and its kind are slow to import: --help does without

    stages.start(options, segmentation)


if __name__ == "__main__":
    cli.main(main, UNetOptions, __doc__)

"""Train and evaluate a CNN on single MRI images: glioma, meningioma, pituitary tumour, or none.

    python training/cnn_training.py                                       # CustomCNN, the official test set
    python training/cnn_training.py --model alexnet --val 0
    python training/cnn_training.py --split patient --fold 0              # no patient on both sides: 1 of 5 folds
    python training/cnn_training.py --evaluate CustomCNN --data FOLDER

Results go to runs/NAME: weights (safetensors), history.csv, metrics.csv, predictions.csv, results.md and figures.
Started again with the same name, a run goes on where it stopped. Without data a built-in phantom is used.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this script's own project, wherever it is started

from training.options import CNNOptions, ImageOptions
from utils import cli


def main(options: ImageOptions) -> None:
    from training import classification, stages  # torch and its kind are slow to import: --help does without

    stages.start(options, classification)


if __name__ == "__main__":
    cli.main(main, CNNOptions, __doc__)

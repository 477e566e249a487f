"""Train and evaluate the VisionTransformer on single MRI images: glioma, meningioma, pituitary tumour, or none.

    python training/vit_training.py                                       # the official test set
    python training/vit_training.py --split patient --fold 0              # no patient on both sides: 1 of 5 folds

All else is as in cnn_training.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this script's own project, wherever it is started

from training.cnn_training import main
from training.options import ViTOptions
from utils import cli

if __name__ == "__main__":
    cli.main(main, ViTOptions, __doc__)

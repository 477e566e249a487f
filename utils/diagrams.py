"""Draw the diagrams of all models, and what the U-Nets cost, as PNG files.

    python utils/diagrams.py --out images

Every number in them is read from the models, so that they follow when a model changes.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # started as a script, wherever
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import cli
from utils.classifier_diagrams import CNNS, cnn, vit
from utils.files import writable
from utils.pictures import save_png
from utils.unet_diagrams import UNETS, attention_gate, costs, unet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIAGRAMS: dict[str, Callable[[], "Figure"]] = {  # the file (without .png) -> what draws it
    **{name: partial(unet, name) for name in UNETS},
    "attention_gate": attention_gate,
    **{name: partial(cnn, name) for name in CNNS},
    "vit": vit,
    "unet_costs": costs,
}


def write(out: Path = Path("images")) -> None:
    """Draw all diagrams.

    Args:
        out: the folder that receives a PNG file each.
    """
    folder = writable(out)
    for name, draw in DIAGRAMS.items():
        save_png(draw(), folder / f"{name}.png")
        print(folder / f"{name}.png")


if __name__ == "__main__":
    cli.run(write, __doc__)

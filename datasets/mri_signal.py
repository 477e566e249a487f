"""What a tissue looks like in each sequence: relaxation times at 3 T and the signal equations.

Spin echo and inversion recovery as in any textbook (Haacke 1999, Magnetic Resonance Imaging, chapters 8 and 26).
"""

from typing import NamedTuple

import numpy as np


class Tissue(NamedTuple):
    """Relaxation times T1 and T2 in ms at 3 T, and proton density relative to water."""

    t1: float
    t2: float
    pd: float


# White and grey matter: Wansapura 1999, JMRI 9:531. CSF: subarachnoid values of PMC10696635 (2023). Blood: Stanisz
# 2005, MRM 54:507. Edema, tumour and hyperintense white matter: near what Badve 2017, AJNR 38:492 reports of
# gliomas and the white matter around them; necrosis, mostly fluid, lies between these and CSF.
TISSUES = {
    "wm": Tissue(832, 79.6, 0.70),
    "gm": Tissue(1331, 110, 0.80),
    "csf": Tissue(4300, 1890, 1.00),
    "blood": Tissue(1932, 275, 0.85),
    "wmh": Tissue(1150, 125, 0.80),
    "ed": Tissue(1450, 175, 0.86),
    "et": Tissue(1500, 130, 0.85),
    "ncr": Tissue(2300, 220, 0.92),
}
SEQUENCES = {"t1": (550, 12), "t1ce": (550, 12), "t2": (4500, 95), "flair": (9000, 120)}  # TR and TE in ms
RELAXIVITY = 4.0  # of gadolinium, per mM and s: 3.0 to 5.0 in plasma at 3 T, Szomolanyi 2019, Invest Radiol 54:559


def spin_echo(tissue: Tissue, tr: float, te: float) -> float:
    """The signal of a spin echo relative to fully relaxed water: times in ms."""
    return tissue.pd * (1 - np.exp(-tr / tissue.t1)) * np.exp(-te / tissue.t2)


def inversion_recovery(tissue: Tissue, tr: float, te: float, ti: float) -> float:
    """The magnitude of a spin echo that begins ti after an inversion: times in ms."""
    recovered = 1 - 2 * np.exp(-ti / tissue.t1) + np.exp(-tr / tissue.t1)
    return abs(tissue.pd * recovered * np.exp(-te / tissue.t2))


def null_time(t1: float, tr: float) -> float:
    """The inversion time in ms at which a tissue of this T1 gives no signal: so CSF is dark in FLAIR."""
    return t1 * (np.log(2) - np.log1p(np.exp(-tr / t1)))


def enhance(tissue: Tissue, gadolinium: float) -> Tissue:
    """The tissue with gadolinium in mM, which raises the rate 1/T1 by RELAXIVITY times its concentration."""
    return tissue._replace(t1=1000 / (1000 / tissue.t1 + RELAXIVITY * gadolinium))


def signal(tissue: Tissue, modality: str, gadolinium: float = 0.0, stretch: float = 1.0) -> float:
    """The signal of a tissue in one of the SEQUENCES with its times stretched; gadolinium counts in T1c only."""
    tr, te = (stretch * time for time in SEQUENCES[modality])
    if modality == "flair":
        return inversion_recovery(tissue, tr, te, null_time(TISSUES["csf"].t1, tr))
    return spin_echo(enhance(tissue, gadolinium) if modality == "t1ce" else tissue, tr, te)

"""The anatomy of the phantom: where each tissue is, and where the tumour.

A table of ellipsoids in deformed coordinates, with a folded cortex; a tumour is noise added to a distance. Points and
lengths are in mm from the centre of the brain, along right to left, anterior to posterior, inferior to superior.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

SHAPE = (240, 240, 155)  # voxels of a volume
BOX = (slice(44, 196), slice(29, 221), slice(0, 152))  # where in SHAPE the brain lies
COARSE = (76, 96, 76)  # the box at 2 mm, where shapes are computed
NCR, ED, ET = 1, 2, 4
Maps = dict[str, np.ndarray]
Table = dict[str, list[tuple[tuple[float, ...], tuple[float, ...]]]]

ELLIPSOIDS: Table = {  # centre and radii in mm, mirrored
    "cerebrum": [((0, -1, 2), (66, 84, 63)), ((0, 0, 12), (67, 80, 50))],
    "temporal": [((42, 0, -24), (23, 38, 22)), ((36, -20, -30), (20, 24, 19))],
    "cerebellum": [((20, 46, -46), (32, 31, 23)), ((0, 48, -44), (12, 26, 20))],
    "brainstem": [((0, 18, -34), (18, 14, 18)), ((0, 24, -56), (12, 11, 26)), ((0, 10, -14), (17, 12, 16))],
    "callosum": [((0, 2, 6), (30, 38, 20))],  # with all below it: here the hemispheres are joined
    "deep": [((17, -22, 10), (6, 11, 10)), ((27, -4, 3), (7, 19, 11)), ((11, 10, 6), (9, 15, 9))],
    "sylvian": [((61, -20, 0), (9, 1.6, 9)), ((47, -15, 1), (9, 1.8, 10)), ((38, -6, 2), (2.2, 18, 9))],
    "horns": [((9, -22, 10), (5, 15, 7)), ((23, 44, 5), (4, 15, 5)), ((32, 8, -16), (3, 18, 4))],
    "ventricles": [((10, 2, 18), (6, 24, 6)), ((20, 28, 11), (7, 12, 9)), ((0, 4, 2), (2.2, 14, 11)),
                   ((0, 33, -42), (8, 6, 10))],
}  # fmt: skip


class Lesion(NamedTuple):
    """A glioma: its centre in mm, the radius of its core, how far the edema reaches beyond the core and how thick
    the enhancing rim is, all in mm, and the gadolinium in the rim in mM: 0 if it does not enhance."""

    centre: np.ndarray
    core: float
    edema: float
    rim: float
    gadolinium: float


def column(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Three values that broadcast over points (3, x, y, z)."""
    return np.asarray(values, dtype=np.float32).reshape(3, 1, 1, 1)


def double(field: np.ndarray) -> np.ndarray:
    """The field at twice the resolution along each axis, by quadratic B-spline subdivision (Chaikin 1974)."""
    for axis in range(field.ndim):
        field = ndimage.correlate1d(np.repeat(field, 2, axis), (0.25, 0.5, 0.25), axis, mode="nearest")
    return field


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], doublings: int) -> np.ndarray:
    """Noise of deviation 1 that is smooth over 2 ** doublings voxels: float32 of the shape."""
    sizes = [[-(-n // 2**k) for n in shape] for k in range(doublings, -1, -1)]
    field = rng.standard_normal(sizes[0], dtype=np.float32)
    for size in sizes[1:]:
        field = double(field)[tuple(map(slice, size))]
    return field / field.std()


def distance(points: np.ndarray, *names: str, table: Table = ELLIPSOIDS) -> np.ndarray:
    """Approximate signed distance in mm, negative inside, from points (3, ...) to a union of a table's ellipsoids."""
    points = np.stack([np.abs(points[0]), points[1], points[2]])
    nearest = np.full(points.shape[1:], np.inf, dtype=np.float32)
    for centre, radii in (ellipsoid for name in names for ellipsoid in table[name]):
        scaled = np.stack([(points[i] - centre[i]) / radii[i] for i in range(3)])
        radius = np.sqrt((scaled**2).sum(axis=0))  # 1 on the surface
        slope = np.sqrt(sum((scaled[i] / radii[i]) ** 2 for i in range(3)))
        nearest = np.minimum(nearest, radius * (radius - 1) / np.maximum(slope, 1e-3))
    return nearest


def hull(points: np.ndarray) -> np.ndarray:
    """Approximate signed distance in mm from points (3, ...) to the outer surface of the cerebrum."""
    return np.minimum(np.maximum(distance(points, "cerebrum"), -22 - points[2]), distance(points, "temporal"))


def inside(signed_distance: np.ndarray, width: float = 1.0) -> np.ndarray:
    """How much of a voxel lies within a surface: a ramp `width` mm wide, which at 1 mm is partial volume."""
    return np.clip(0.5 - signed_distance / width, 0, 1)


def draw_lesion(rng: np.random.Generator, number: int) -> Lesion:
    """A random glioma in the depth of either hemisphere; that of every sixth patient does not enhance."""
    core = rng.uniform(7.5, 26)
    centre = np.zeros(3)
    while hull(centre) > -10 - 0.4 * core or distance(centre, "ventricles", "horns") < 3:
        centre = rng.uniform((12, -52, -30), (48, 52, 42))
    centre[0] *= rng.choice((-1, 1))
    edema, rim, gadolinium = rng.uniform((4, 2.5, 0.15), (18, 6, 0.5)).tolist()
    return Lesion(centre, core, edema, rim, gadolinium if number % 6 else 0.0)


def deform(rng: np.random.Generator, lesion: Lesion) -> tuple[np.ndarray, np.ndarray]:
    """Where each coarse voxel of this patient lies in the table of ellipsoids, without and with the tumour's mass
    effect: two float32 arrays (3, 76, 96, 76) in mm."""
    grid = np.stack(np.meshgrid(*(2 * np.arange(n, dtype=np.float32) + 1 - n for n in COARSE), indexing="ij"))
    grid += np.stack([2.5 * smooth_noise(rng, COARSE, 4) + smooth_noise(rng, COARSE, 2) for _ in grid])
    grid /= column(rng.uniform(0.94, 1.02, 3))
    grid[0] /= 1 + 0.0012 * grid[1]  # narrower in front
    return grid, push(grid, lesion)


def push(points: np.ndarray, lesion: Lesion) -> np.ndarray:
    """Where points (3, x, y, z) lay before the mass of the tumour pushed them away from its centre."""
    away, reach = points - column(lesion.centre), lesion.core + 8
    share = 0.45 * lesion.core / reach * np.exp(0.5 - 0.5 * (away**2).sum(axis=0) / reach**2)
    return points - share * away


def folds(rng: np.random.Generator) -> np.ndarray:
    """Band-limited noise at 2 mm whose zeros are where sulci can lie: float32 (76, 96, 76)."""
    noise = smooth_noise(rng, COARSE, 2)
    return noise - ndimage.gaussian_filter(noise, 4)


def fold(noise: np.ndarray, points: np.ndarray, spacing: float = 2.0) -> np.ndarray:
    """Approximate distance in mm from a grid of points (3, x, y, z) to the nearest sheet on which a sulcus can lie: the
    zeros of `folds`, drawn out from the middle of each hemisphere to meet its surface at right angles."""
    middle = np.stack([30 * np.sign(points[0]), 0 * points[0], 0 * points[0] + 4])
    radius = np.sqrt((((points - middle) / column((40, 80, 60))) ** 2).sum(axis=0))
    drawn = middle + 0.8 * (points - middle) / (radius + 0.1) ** 0.8
    index = [(p + n - 1) / 2 for p, n in zip(drawn, COARSE, strict=True)]
    value = ndimage.map_coordinates(noise, index, order=1, mode="reflect")
    return value / (np.sqrt(sum(g**2 for g in np.gradient(value, spacing))) + 0.03)


def make_anatomy(rng: np.random.Generator, lesion: Lesion) -> tuple[np.ndarray, Maps, np.ndarray]:
    """A patient's head: the brain, bool (152, 192, 152) in BOX; how much of each voxel of the brain is which tissue,
    float32 (voxels of the brain,); the labels of these voxels, uint8."""
    before, points = deform(rng, lesion)
    coarse = {name: distance(points, name) for name in ELLIPSOIDS}
    coarse |= {"x": points[0], "y": points[1], "z": points[2], "sheet": fold(folds(rng), points)}
    coarse["depth"] = -hull(before)  # the skull does not give way
    stretch = column(np.exp(rng.normal(0, 0.15, 3)))
    coarse["lesion"] = np.sqrt((((before - column(lesion.centre)) * stretch) ** 2).sum(axis=0))
    fine = {name: double(field) for name, field in coarse.items()}  # (152, 192, 152)

    hindbrain = np.minimum(fine["cerebellum"], fine["brainstem"])
    notch = (np.abs(fine["sheet"]) < 1.3) & (fine["depth"] < 2.5) & (hindbrain > 0)
    rough = 0.7 * smooth_noise(rng, hindbrain.shape, 1)
    brain = (np.minimum(-fine["depth"], hindbrain) + rough < 0) & ~notch
    brain[[0, 1, -2, -1]] = brain[:, [0, 1, 2, 3, -4, -3, -2, -1]] = brain[:, :, [0, -1]] = False
    parts, _ = ndimage.label(brain)
    brain = parts == np.bincount(parts[brain]).argmax()

    def noise(doublings: int) -> np.ndarray:
        return smooth_noise(rng, brain.shape, doublings)[brain]

    d = {name: field[brain] for name, field in fine.items()}
    tissues = healthy_tissues(d, noise, atrophy=rng.uniform(0, 1))
    return brain, tissues, grow(lesion, tissues, d, noise)


def paint(tissues: Maps, name: str, fraction: np.ndarray) -> None:
    """Put a tissue in the place of this fraction of what is there."""
    for other in tissues:
        tissues[other] = tissues[other] * (1 - fraction)
    tissues[name] = tissues.get(name, 0) + fraction


def healthy_tissues(d: Maps, noise: Callable[[int], np.ndarray], atrophy: float) -> Maps:
    """How much of each voxel is which tissue before the tumour, from the distances d in mm, all (voxels,)."""
    fissure = np.hypot(d["x"], np.maximum(0, -d["callosum"]))
    below_sulcus = np.maximum(0, np.minimum(d["depth"], fissure) - 13 - 4 * noise(4))
    sulcus = np.hypot(d["sheet"], below_sulcus)
    pia = np.minimum.reduce([d["depth"] - 0.6, fissure - 0.7, d["sylvian"], sulcus - 0.4 - 0.6 * atrophy])
    tissues = {"csf": inside(pia), "gm": inside(pia - 3) - inside(pia), "wm": 1 - inside(pia - 3)}
    paint(tissues, "gm", 0.7 * inside(d["deep"]))

    stem = inside(d["brainstem"])
    cerebellum = inside(d["cerebellum"]) * (1 - stem)
    shells = np.sqrt(0.5 * d["x"] ** 2 + (d["y"] - 15) ** 2 + 1.6 * (d["z"] + 40) ** 2) + 2 * noise(3)
    folia = np.sin(2 * np.pi / 6 * shells)
    paint(tissues, "wm", 0.85 * stem)
    paint(tissues, "gm", cerebellum)
    paint(tissues, "wm", cerebellum * inside(d["cerebellum"] + 6, 4) * (0.6 + 0.3 * folia))
    paint(tissues, "csf", cerebellum * inside(-d["cerebellum"] - 9, 4) * np.maximum(folia - 0.6, 0))

    vessel = np.hypot(sulcus, 4 * noise(3)) - 0.7
    sinus = np.hypot(d["x"], d["depth"] - 1.5) - 2 + 0.03 * np.maximum(0, -20 - d["y"])
    paint(tissues, "blood", inside(np.minimum(vessel, sinus)) * (1 - stem) * (1 - cerebellum))
    ventricles = np.minimum(d["ventricles"], d["horns"]) + 1 - 2.5 * atrophy
    paint(tissues, "csf", inside(ventricles))
    spots = np.minimum(6 * (2.9 - noise(2)), ventricles - 2 - 1.5 * noise(4))  # and caps of the ventricles
    paint(tissues, "wmh", tissues["wm"] * inside(spots, 3) * (d["depth"] > 5) * (1 - stem) * (1 - cerebellum))
    return tissues


def grow(lesion: Lesion, tissues: Maps, d: Maps, noise: Callable[[int], np.ndarray]) -> np.ndarray:
    """Paint the tumour into the tissues, given the distances d in mm; its labels, uint8 (voxels,)."""
    beyond_falx = np.minimum(1.5 - d["x"] * np.sign(lesion.centre[0]), d["callosum"])
    wall = np.maximum(beyond_falx, 1 - np.minimum(d["ventricles"], d["horns"]))
    lobes, fringe = 0.2 * noise(4) + 0.05 * noise(2), noise(3)
    core = d["lesion"] + lesion.core * (lobes + 0.15 * fringe - 1)
    core = np.maximum.reduce([core, wall, 2 - d["depth"]])
    necrosis = core + lesion.rim * (1 + 0.4 * noise(3) + 0.2 * noise(2)) * (lesion.gadolinium > 0)
    edema = d["lesion"] + (lesion.core + lesion.edema) * (0.5 * lobes - 0.1 * fringe + 0.1 * noise(3) - 1)
    edema += 8 * (1 - tissues["wm"] - tissues["wmh"])  # it spreads along white matter
    edema = np.minimum(np.maximum(edema, wall), core)
    for name, surface, width in (("ed", edema, 2.5), ("et", core, 1.5), ("ncr", necrosis, 1.5)):
        paint(tissues, name, inside(surface, width))
    return np.select([necrosis < 0, core < 0, edema < 0], [NCR, ET, ED], 0).astype(np.uint8)

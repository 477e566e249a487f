"""The audit finds what was planted and nothing else; groups are unions; the real set has the known figures."""

import csv
import subprocess
import sys
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from scipy.ndimage import gaussian_filter

from datasets import audit, duplicates, patients
from datasets.images import CLASSES, find_images

SCRIPT = Path(__file__).parents[1] / "datasets" / "audit.py"


def noise(seed: int, shape: tuple[int, int] = (180, 151)) -> np.ndarray:
    """An image of smooth blobs, unlike that of any other seed."""
    blobs = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 8)
    return ((blobs - blobs.min()) / np.ptp(blobs) * 255).astype(np.uint8)


def as_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = BytesIO()
    Pillow.fromarray(pixels).save(file, "jpeg", quality=quality)
    return np.asarray(Pillow.open(file))


def scaled(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Pillow.fromarray(pixels).resize((width, height), Pillow.Resampling.BICUBIC))


def listed(pairs: np.ndarray) -> list[tuple[int, int, bool]]:
    return pairs[["i", "j", "mirrored"]].tolist()


def test_copies_of_every_kind_are_near() -> None:
    first = noise(0)
    copies = {
        "exact": (first.copy(), False),
        "mirrored": (first[:, ::-1], True),
        "re-encoded": (as_jpeg(first, 80), False),
        "rescaled": (scaled(first, 97, 116), False),
        "enlarged": (scaled(first, 302, 360), False),
        "squashed": (scaled(first, 128, 128), False),
        "brighter": ((0.7 * first + 60).astype(np.uint8), False),
        "mirrored, rescaled and re-encoded": (as_jpeg(scaled(first[:, ::-1], 97, 116), 80), True),
    }
    for name, (copy, mirrored) in copies.items():
        thumbs = duplicates.thumbnails([noise(1), first, noise(2), copy])
        assert listed(duplicates.near_pairs(thumbs)) == [(1, 3, mirrored)], name


def test_other_images_are_not_near() -> None:
    others = [noise(seed) for seed in range(200)]
    others += [noise(0)[::-1], np.roll(noise(0), 5, axis=1), 255 - noise(0)]  # upside down, shifted, inverted
    assert len(duplicates.near_pairs(duplicates.thumbnails(others))) == 0


def test_thumbnails_have_mean_0_and_norm_1_and_constant_images_are_near_nothing() -> None:
    thumbs = duplicates.thumbnails(iter([noise(0), np.full((50, 70), 200, np.uint8), np.full((33, 33), 7, np.uint8)]))
    assert thumbs.shape == (3, 4096) and thumbs.dtype == np.float32
    assert abs(thumbs[0].mean()) < 1e-6 and np.linalg.norm(thumbs[0]) == pytest.approx(1)
    assert not thumbs[1:].any()
    assert len(duplicates.near_pairs(thumbs)) == 0
    assert duplicates.thumbnails([]).shape == (0, 4096)


def test_near_pairs_agree_with_numpy_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", 4)
    images = [noise(seed, (64, 64)) for seed in range(11)]
    mirrored = [image[:, ::-1] for image in images]
    found = duplicates.near_pairs(duplicates.thumbnails(images), above=0.1)
    straight = np.corrcoef([image.ravel() for image in images])
    turned = np.corrcoef([image.ravel() for image in images], [image.ravel() for image in mirrored])[:11, 11:]
    best = np.maximum(straight, turned)
    wanted = [(i, j, turned[i, j] > straight[i, j]) for i in range(11) for j in range(i + 1, 11) if best[i, j] > 0.1]
    assert sorted(listed(found)) == wanted and 10 < len(wanted) < 55
    np.testing.assert_allclose(found["correlation"], best[found["i"], found["j"]], atol=1e-5)


def test_identical_means_shape_and_pixels() -> None:
    pixels = noise(0, (20, 30))
    images = [pixels, pixels.reshape(30, 20), pixels.copy(), noise(1), pixels + (pixels == 0), pixels.astype(np.uint16)]
    digests = [duplicates.digest(image) for image in [*images, pixels]]
    assert duplicates.identical(digests) == [[0, 2, 6]]
    assert listed(duplicates.identical_pairs(digests)) == [(0, 2, False), (0, 6, False), (2, 6, False)]


@settings(deadline=None)  # the first call imports SciPy
@given(st.integers(1, 12).flatmap(lambda count: st.tuples(
    st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=10),
    st.lists(st.sampled_from(["", "p", "q", "r"]), min_size=count, max_size=count),
)))  # fmt: skip
def test_groups_are_unions(case: tuple[list[tuple[int, int]], list[str]]) -> None:
    links, names = case
    count = len(names)
    pairs = np.array([(i, j, 1, False) for i, j in links], duplicates.PAIR)
    unions = [{place} for place in range(count)]
    same = [(i, j) for i in range(count) for j in range(count) if names[i] and names[i] == names[j]]
    for i, j in links + same:
        joined = unions[i] | unions[j]
        for place in joined:
            unions[place] = joined
    group = duplicates.groups(count, pairs, names)
    assert [set(np.flatnonzero(group == number)) for number in group] == unions
    with pytest.raises(ValueError, match=f"{count} patients for {count + 1} images"):
        duplicates.groups(count + 1, pairs, names)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Eight images that can be read: three copies in Testing, a wrong label, a patient on both sides; two damaged."""
    files = {
        "Training/glioma/Tr-gl_0010.png": noise(0),  # the name is that of an image whose patient is known
        "Training/glioma/b.png": noise(1),
        "Training/odd/c.png": noise(2),
        "Training/odd/d.png": scaled(noise(2), 100, 120),
        "Testing/glioma/e.png": noise(0),  # identical to Tr-gl_0010
        "Testing/glioma/f.png": noise(1)[:, ::-1],  # b, mirrored
        "Testing/odd/g.png": as_jpeg(noise(1), 80),  # b again, under another label
        "Testing/odd/h.png": noise(3),
    }
    table = {Path(name).name: known for name, known in patients.load().items()}
    shared = table["Tr-gl_0010"].patient
    twin = next(stem for stem, known in table.items() if stem.startswith("Te-") and known.patient == shared)
    files[f"Testing/glioma/{twin}.png"] = files.pop("Testing/odd/h.png")
    for name, pixels in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "Training/odd/text.jpg").write_text("no image")
    (tmp_path / "Testing/odd/empty.png").touch()
    return tmp_path


def cells(report: str) -> dict[str, list[int]]:
    """The rows of all tables by their first cell."""
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in report.splitlines() if line[:1] == "|"]
    return {name: [int(value) for value in values] for name, *values in rows if values[0].isdigit()}


def test_the_audit_reports_what_was_planted(tree: Path) -> None:
    found = audit.inspect(tree)
    text = audit.report(found)
    rows = cells(text)
    assert "| images | glioma | odd | all |" in text and "| copies | all | within Training | within Testing |" in text
    assert rows["Training"] == [2, 2, 4] and rows["Testing"] == [3, 1, 4]
    assert rows["groups of pixel-identical files"] == [1, 0, 0, 1]
    assert rows["files in them"] == [2, 0, 0, 2]
    assert rows["pixel-identical pairs"] == [1, 0, 0, 1]
    assert rows["other near-identical pairs, as they are"] == [2, 1, 0, 1]  # c = d, b = g
    assert rows["other near-identical pairs, mirrored"] == [2, 0, 1, 1]  # f = g, b = f
    assert rows["pairs with conflicting labels"] == [2, 0, 1, 1]
    assert rows["with a pixel-identical training image"] == [1, 0, 1]
    assert rows["with an identical, near-identical or mirrored training image"] == [2, 1, 3]
    assert rows["whose patient is known"] == rows["whose patient is in Training, too"] == [1, 0, 1]
    # {Tr-gl_0010, e, patient's other image}, {b, f, g}, {c, d}
    assert "known patients: 3, the largest of 3 images; with several classes: 1." in text
    assert "Known patients: 1, of 2 images; in both Training and Testing: 1." in text
    assert text.count("Left out: ") == 2 and "text.jpg" in text and "empty.png" in text


def test_the_figure_shows_each_example_once(tree: Path) -> None:
    figure = audit.montage(audit.inspect(tree))
    assert figure is not None
    panels = [panel for band in figure.subfigs for panel in band.subfigs if panel.axes]
    shown = Counter(tuple(axes.get_title().split("\n")[1] for axes in panel.axes) for panel in panels)
    conflicts = {("b.png", "g.png"), ("f.png", "g.png")}  # once for their kind, once for their labels
    others = {("Tr-gl_0010.png", "e.png"), ("c.png", "d.png"), ("b.png", "f.png")}
    assert shown == dict.fromkeys(conflicts, 2) | dict.fromkeys(others, 1)


def test_the_script_leaves_table_and_figure(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    done = run(tree, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "pixel-identical" in done.stdout and "Traceback" not in done.stderr
    rows = list(csv.DictReader((out / "audit_pairs.csv").open()))
    assert Counter(row["kind"] for row in rows) == {"identical": 1, "near-identical": 2, "mirrored": 2}
    [conflict] = [row for row in rows if row["conflict"] == "1" and row["kind"] == "near-identical"]
    assert {conflict["file_a"], conflict["file_b"]} == {"Training/glioma/b.png", "Testing/odd/g.png"}
    assert float(conflict["correlation"]) > 0.999
    with Pillow.open(out / "audit_examples.png") as figure:
        assert np.asarray(figure.convert("L")).std() > 10  # something is drawn
    assert {path.name for path in out.iterdir()} == {"audit_pairs.csv", "audit_examples.png"}


def test_a_folder_without_parts_and_without_copies(tmp_path: Path) -> None:
    for seed in range(3):
        (tmp_path / f"class{seed % 2}").mkdir(exist_ok=True)
        Pillow.fromarray(noise(seed)).save(tmp_path / f"class{seed % 2}" / f"{seed}.png")
    found = audit.inspect(tmp_path)
    text = audit.report(found)
    assert cells(text)["all"] == [2, 1, 3] and cells(text)["pairs with conflicting labels"] == [0]
    assert "test images" not in text and "Known" not in text and "known patients: 3, the largest of 1 images" in text
    assert audit.montage(found) is None


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken" / "glioma").mkdir(parents=True)
    (tmp_path / "broken" / "glioma" / "a.png").write_bytes(b"\x89PNG")
    (tmp_path / "file").touch()
    for folder, more, sentence in (
        ("nowhere", [], "there is no folder"),
        ("empty", [], "no image in"),
        ("broken", [], "none of the 1 images in"),
        ("broken", ["--out", tmp_path / "file"], "is a file: name a folder"),
    ):
        done = run(tmp_path / folder, *(more or ["--out", tmp_path / "out"]))
        assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, cwd="/")


def test_help_and_groups_need_no_torch() -> None:
    done = subprocess.run([sys.executable, "-X", "importtime", str(SCRIPT), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--out" in done.stdout
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert not imported & {"torch", "cv2", "matplotlib", "scipy"}


def test_the_table_of_patients() -> None:
    table = patients.load()
    assert len(table) == 4750 and len({known.patient for known in table.values()} - {""}) == 233
    folders = {"gl": "glioma", "me": "meningioma", "pi": "pituitary"}
    wrong = {Path(n).name: known.label for n, known in table.items() if folders[Path(n).name[3:5]] != known.label}
    assert wrong == dict.fromkeys(("Te-piTr_0002", "Tr-pi_0043", "Tr-pi_0515", "Tr-pi_0520"), "meningioma")


def test_look_up_by_stem(tmp_path: Path) -> None:
    for name in ("pituitary/Tr-pi_0043.png", "notumor/Tr-no_0043.jpg", "tumour_p/Tr-pi_0515.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    path, known = patients.look_up(find_images(tmp_path, classes=None), tmp_path)
    assert path == patients.TABLE and known == [("", "notumor"), ("101127", "meningioma"), ("102985", "tumour_p")]


def test_a_table_of_ones_own_tells_files_apart_by_their_path(tmp_path: Path) -> None:
    for label in CLASSES:
        (tmp_path / "set" / "Training" / label).mkdir(parents=True)
        (tmp_path / "set" / "Training" / label / "1.png").touch()
    table = "\ufefffile,patient,label\nTraining/glioma/1.jpg,p7,glioma\nTraining/notumor/1.png,p7,notumor\n"
    (tmp_path / "set" / patients.OWN).write_text(table, encoding="utf-8")
    path, known = patients.look_up(find_images(tmp_path), tmp_path)  # the set lies one folder deeper
    assert path == tmp_path / "set" / patients.OWN
    assert known == [("p7", "glioma"), ("", "meningioma"), ("p7", "notumor"), ("", "pituitary")]
    (tmp_path / "set" / patients.OWN).rename(tmp_path / patients.OWN)  # beside the set, and made on Windows
    (tmp_path / patients.OWN).write_text(table.replace("/", "\\"), encoding="utf-8")
    assert patients.look_up(find_images(tmp_path), tmp_path) == (tmp_path / patients.OWN, known)
    for stranger in ("glioma/1.png", "Training/glioma/2.png", "Training/Glioma/1.png"):
        (tmp_path / patients.OWN).write_text(f"{table}{stranger},p7,glioma\n", encoding="utf-8")
        with pytest.raises(ValueError, match=rf"names {stranger[:-4]}, but .* write files as Training/glioma/1\.png"):
            patients.look_up(find_images(tmp_path), tmp_path)


def test_the_row_of_a_damaged_image_is_no_stranger(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "glioma").mkdir(exist_ok=True)
        Pillow.fromarray(noise(number)).save(tmp_path / "glioma" / f"{number}.png")
    (tmp_path / "glioma" / "1.png").write_bytes(b"no image")
    table = "".join(f"glioma/{number}.png,p{number},glioma\n" for number in range(3))
    (tmp_path / patients.OWN).write_text(f"file,patient,label\n{table}")
    found = audit.inspect(tmp_path)
    assert [known.patient for known in found.known] == ["p0", "p2"] and len(found.damaged) == 1


def test_a_bad_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with pytest.raises(FileNotFoundError, match=r"no table .*table\.csv"):
        patients.load(path)
    for text in ("file,patient\na/b.jpg,p\n", "file;patient;label\na/b.jpg;p;glioma\n", "a/b.jpg,p,glioma\n", ""):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"no column \w+: its first line must be file,patient,label, with commas"):
            patients.load(path)
    path.write_text("file,patient,label\na/b.jpg,p\n")
    with pytest.raises(ValueError, match="lacks label in a row"):
        patients.load(path)
    path.write_text("file,patient,label\na/b.jpg ,p ,glioma\na/c.jpg, p, glioma\n,,\n")
    assert patients.load(path) == {"a/b": ("p", "glioma"), "a/c": ("p", "glioma")}  # blanks make no second patient
    path.write_text("file,patient,label\na/b.jpg,p,glioma\na/b.png,q,glioma\n")
    with pytest.raises(ValueError, match="a/b twice"):
        patients.load(path)
    path.write_text("file,patient,label\na/1.2.1,p,glioma\na/1.2.2,q,glioma\n")  # a dot, but no ending
    assert set(patients.load(path)) == {"a/1.2.1", "a/1.2.2"}
    path.write_text("file,patient,label\na/b.jpg,Müller,glioma\n", encoding="cp1252")
    with pytest.raises(ValueError, match=r"table\.csv cannot be read: save it as CSV in UTF-8"):
        patients.load(path)
    path.write_text("file,patient,label\na/b.jpg,p,Glioma\n")
    with pytest.raises(ValueError, match=r"table\.csv calls a/b 'Glioma': a label must be glioma, "):
        patients.load(path)


@pytest.mark.real_data
def test_the_table_is_that_of_the_real_set(real_data: Path) -> None:
    images = find_images(real_data / "classification")
    assert len({image.path.stem for image in images}) == len(images) == 7023
    classes = {"1": "meningioma", "2": "glioma", "3": "pituitary"}
    rows = list(csv.DictReader((real_data / "meta" / "classification_patients.csv").open()))
    names = {row["file"]: (row["patient"], classes[row["figshare_label"]]) for row in rows if row["patient"]}
    wanted = [names.get(image.name, ("", image.label)) for image in images]
    assert patients.look_up(images, real_data / "classification")[1] == wanted
    assert min(float(row["correlation"]) for row in rows if row["patient"]) == 0.99965
    assert max(float(row["correlation"]) for row in rows if not row["patient"]) < 0.885


@pytest.mark.slow
@pytest.mark.real_data
def test_the_figures_of_the_real_set(real_data: Path) -> None:
    """The figures of its README, but 974 instead of 963.

    963 comes out when images are first padded to squares: a mirror image whose margin is odd then lies one pixel off.
    """
    found = audit.inspect(real_data / "classification")
    text = audit.report(found)
    rows = cells(text)
    assert rows["Training"][-1] == 5712 and rows["Testing"][-1] == 1311 and not found.damaged
    assert rows["groups of pixel-identical files"][0] == 300 and rows["files in them"][0] == 726
    assert rows["with a pixel-identical training image"] == [0, 106, 105, 5, 216]
    assert rows["with an identical, near-identical or mirrored training image"] == [81, 289, 385, 219, 974]
    assert rows["whose patient is known"][-1] == rows["whose patient is in Training, too"][-1] == 788
    assert rows["pairs with conflicting labels"][0] == text.count("Wrong label") == 4
    assert "known patients: 1137, the largest of 49 images; with several classes: 2." in text
    assert "Known patients: 233, of 4750 images;" in text and "to two patients: 0." in text

    # every pair of one slice is found, and no two slices are taken for one: nothing chains
    rows_of = csv.DictReader((real_data / "meta" / "classification_patients.csv").open())
    source = {row["file"]: row["figshare_slice"] for row in rows_of}
    slices = np.array([source.get(image.name, "") for image in found.images])
    i, j = (slices[found.pairs[side]] for side in "ij")
    assert (i == j)[(i != "") & (j != "")].all()
    assert (i[i != ""] == j[i != ""]).sum() == sum(n * (n - 1) // 2 for name, n in Counter(slices).items() if name) > 0
    assert np.bincount(duplicates.groups(len(found.images), found.pairs)).max() < 25

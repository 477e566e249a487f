"""Downloading with the real kaggle client, from a server on the loopback that behaves as Kaggle does, or badly."""

import csv
import gzip
import io
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import pytest
from filelock import FileLock
from PIL import Image

from datasets import archives, download
from tests.conftest import left
from tests.kaggle_server import KaggleServer
from tests.test_images import tree as heads
from utils import cli

PROJECT = Path(__file__).parents[1]
KEY = "not-to-be-printed"
SLICES = {"volume_1": 3, "volume_2": 2}
CHUNK = 1 << 20  # bytes, of the client
INSIDE = "BraTS2020_training_data/content/data"


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return content.getvalue()


def slices(prefix: str = INSIDE, counts: dict[str, int] = SLICES) -> dict[str, bytes]:
    """Files of a small BraTS archive, of its own folder names; the readers of names need no content."""
    names = [f"{prefix}/{volume}_slice_{m}.h5" for volume, count in counts.items() for m in range(count)]
    return {name: name.encode() * 50 for name in names} | {"BraTS20 Training Metadata.csv": b"slice,target\n" * 400_000}


def images(counts: dict[str, int]) -> dict[str, bytes]:
    return {f"{folder}/{n:04d}.jpg": b"jpeg" for folder, count in counts.items() for n in range(count)}


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too; locks do not count."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def environment(home: Path) -> dict[str, str]:
    """Nobody's home, no credentials, no proxy."""
    private = re.compile(r"KAGGLE_|XDG_|.*_PROXY$|VERBOSE", re.IGNORECASE)
    plain = {name: value for name, value in os.environ.items() if not private.match(name)}
    return plain | {"HOME": str(home), "KAGGLE_CONFIG_DIR": str(home / ".kaggle")}


@pytest.fixture
def small() -> download.DataSet:
    return replace(download.SEGMENTATION, archive=0, unpacked=0, expected=SLICES)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "data" / "segmentation"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KaggleServer]:
    """A Kaggle that knows an API key; the real client asks it, without pauses, in a home of its own."""
    surroundings = environment(tmp_path / "home") | {"KAGGLE_USERNAME": "someone", "KAGGLE_KEY": KEY}
    for name in os.environ.keys() - surroundings.keys():
        monkeypatch.delenv(name)
    for name, value in surroundings.items() - os.environ.items():
        monkeypatch.setenv(name, value)
    with KaggleServer(zipped(slices())) as running:
        from kagglesdk import kaggle_env  # before kaggle, which signs in when it is imported

        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, running.address)
        from kaggle.api import kaggle_api_extended

        monkeypatch.setattr(kaggle_api_extended.KaggleApi, "config", str(tmp_path / "home" / ".kaggle" / "kaggle.json"))
        monkeypatch.setattr(kaggle_api_extended, "time", SimpleNamespace(sleep=lambda _: None, mktime=time.mktime))
        running.secrets.clear()
        yield running


@pytest.fixture
def no_key(server: KaggleServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")


def test_a_data_set_is_fetched_whole_once_and_then_left_alone(
    server: KaggleServer, small: download.DataSet, target: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    download.fetch(small, target)
    assert tree(target.parent) == {f"segmentation/{name}": data for name, data in slices().items()}  # and no leftovers
    first = capfd.readouterr()
    assert "5 slices" in first.out and "WARNING" not in first.out
    assert "100%" in first.err and "unpacking" in first.err  # progress bars
    download.fetch(small, target)
    assert "left as it is: 5 slices" in capfd.readouterr().out
    assert server.ranges == [None]


def test_the_command_fetches_what_is_missing(
    server: KaggleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "HERE", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))
    files = tree(heads(tmp_path / "made")) | {"Testing/notumor/Te-no_0001.jpg": b"no image"}
    server.data = zipped(files)
    write(tmp_path / "segmentation", slices())
    download.main()
    said = capsys.readouterr().out
    assert "classification: 17 images" in said and "segmentation is there and left as it is: 5 slices" in said
    assert len(server.ranges) == 1
    source = tmp_path / "classification"
    assert tree(source).keys() - files.keys() == {f"preprocessed/{name}" for name in files if name.endswith(".png")}
    assert all(Image.open(path).size == (256, 256) for path in (source / "preprocessed").rglob("*.png"))
    assert said.count("Te-no_0001.jpg cannot be read") == 1


def test_changed_counts_are_a_warning_that_names_the_difference(
    server: KaggleServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = replace(
        download.CLASSIFICATION, archive=0, unpacked=0, expected={"Training/glioma": 2, "Testing/glioma": 1}
    )
    server.data = zipped(images({"Training/glioma": 2, "Testing/glioma": 3, "Testing/cyst": 1}))
    download.fetch(dataset, tmp_path / "classification")
    said = capsys.readouterr().out
    assert "6 images; WARNING: 3 were expected: Testing/glioma 3 (not 1), Testing/cyst 1 (not 0)" in said
    assert "Training" not in said


def test_a_dropped_connection_is_resumed_where_it_broke(
    server: KaggleServer, small: download.DataSet, target: Path
) -> None:
    server.drops = 2
    download.fetch(small, target)
    size = len(server.data)
    first = size // 2 // CHUNK * CHUNK  # the client writes whole chunks
    second = first + (size - first) // 2 // CHUNK * CHUNK
    assert 0 < first < second and server.ranges == [None, f"bytes={first}-", f"bytes={second}-"]
    assert tree(target) == slices()


@pytest.mark.parametrize(("blob_status", "named"), [(None, "connection to Kaggle fails"), (403, "error (403)")])
def test_a_download_that_failed_is_resumed_by_the_next_call(
    server: KaggleServer, small: download.DataSet, target: Path, blob_status: int | None, named: str
) -> None:
    server.drops, server.blob_status = 99, blob_status  # 403: the signed address has expired
    with pytest.raises((ValueError, OSError), match="run the same command again") as error:
        download.fetch(small, target)
    assert named in str(error.value) and "SIGNED" not in str(error.value)
    assert not target.exists()
    (partial,) = target.parent.rglob("*.zip")
    done = partial.stat().st_size
    assert 0 < done < len(server.data)
    server.drops, server.blob_status = 0, None
    server.ranges.clear()
    download.fetch(small, target)
    assert server.ranges[-1] == f"bytes={done}-"
    assert tree(target.parent) == {f"segmentation/{name}": data for name, data in slices().items()}


def test_a_corrupt_archive_is_fetched_again_once(
    server: KaggleServer, small: download.DataSet, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.corrupt = 1
    download.fetch(small, target)
    assert server.ranges == [None, None] and tree(target) == slices()
    assert "is damaged" in capsys.readouterr().out


def test_an_archive_that_is_corrupt_twice_is_given_up(
    server: KaggleServer, small: download.DataSet, target: Path
) -> None:
    server.corrupt = 99
    with pytest.raises(ValueError, match=r"damaged twice and was removed: .* by hand"):
        download.fetch(small, target)
    assert server.ranges == [None, None]
    assert not left(target.parent)


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "make a token at https://www.kaggle.com/settings/api"), (404, "no data set awsaf49/brats2020-training-data"),
     (403, "sign in at https://www.kaggle.com/datasets/awsaf49/brats2020-training-data, accept its terms"),
     (429, "wait some minutes"), (500, "again later"), (503, "again later")],
)  # fmt: skip
def test_what_kaggle_refuses_is_one_sentence_with_the_remedy(
    server: KaggleServer, target: Path, status: int, remedy: str, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    server.status = status
    monkeypatch.setattr(download, "HERE", target.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))
    monkeypatch.setattr(sys, "argv", ["download.py", "segmentation"])
    with pytest.raises(SystemExit) as stop:
        cli.run(download.main, None)
    assert stop.value.code == cli.BAD_INPUT
    said = capfd.readouterr()
    assert said.err.startswith("error: ") and remedy in said.err and str(status) in said.err
    assert said.err.count("\n") == 1 and not said.out and not left(target.parent)


@pytest.mark.usefixtures("no_key")
def test_without_credentials_every_accepted_form_is_named(small: download.DataSet, target: Path) -> None:
    with pytest.raises(ValueError, match="no Kaggle credentials") as error:
        download.fetch(small, target)
    for form in ("KAGGLE_API_TOKEN", "~/.kaggle/access_token", "KAGGLE_USERNAME + KAGGLE_KEY", "~/.kaggle/kaggle.json",
                 "kaggle auth login"):  # fmt: skip
        assert form in str(error.value)
    assert not left(target.parent)


@pytest.mark.usefixtures("no_key")
@pytest.mark.parametrize("form", ["variable", "access_token", "kaggle.json"])
def test_other_forms_of_credentials_are_accepted_and_never_shown(
    server: KaggleServer, small: download.DataSet, target: Path, form: str, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    server.token = KEY
    config = Path.home() / ".kaggle"
    if form == "variable":
        monkeypatch.setenv("KAGGLE_API_TOKEN", KEY)
    elif form == "access_token":
        write(config, {"access_token": KEY.encode()})
    else:
        write(config, {"kaggle.json": f'{{"username": "someone", "key": "{KEY}"}}'.encode()})
    before = tree(config)
    download.fetch(small, target)
    assert server.secrets[-1] and server.secrets[-1].startswith("Basic" if form == "kaggle.json" else f"Bearer {KEY}")
    said = capfd.readouterr()
    assert KEY not in said.out + said.err
    assert tree(config) == before
    assert not any(KEY.encode() in data for data in tree(target.parent).values())


@pytest.mark.usefixtures("no_key")
def test_a_wrong_token_is_not_taken_for_none(
    server: KaggleServer, small: download.DataSet, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = "another"
    monkeypatch.setenv("KAGGLE_API_TOKEN", KEY)
    with pytest.raises(ValueError, match="does not accept the token in KAGGLE_API_TOKEN: make a token") as error:
        download.fetch(small, target)
    assert KEY not in str(error.value)


def test_no_network(server: KaggleServer, small: download.DataSet, target: Path) -> None:
    server.http.shutdown()
    server.http.server_close()  # nobody listens there now
    with pytest.raises(OSError, match=r"connection to Kaggle fails.*check network and proxy"):
        download.fetch(small, target)
    assert not left(target.parent)


def test_a_small_disk_is_noticed_before_anything_is_fetched(
    server: KaggleServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=21_900_000_000))
    with pytest.raises(OSError, match=r"22\.0 GB are needed .* 21\.9 GB: free some"):
        download.fetch(download.SEGMENTATION, target)
    assert not server.secrets and not left(target.parent)


def test_an_archive_larger_than_foreseen_stays_for_when_there_is_room(
    server: KaggleServer, small: download.DataSet, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
        with pytest.raises(OSError, match="needed to unpack"):
            download.fetch(small, target)
    assert not target.exists()
    download.fetch(small, target)
    assert server.ranges == [None, None]  # the client looks at the size and leaves the second body alone
    assert tree(target) == slices()


@pytest.mark.parametrize("name", ["../escaped.h5", "/escaped.h5", "a/../../escaped.h5", "..\\escaped.h5", "C:\\e.h5"])
def test_paths_that_lead_outside_are_refused(
    server: KaggleServer, small: download.DataSet, target: Path, name: str
) -> None:
    server.data = zipped(slices() | {name: b"evil"})
    with pytest.raises(ValueError, match="leads out of the folder, so do not trust it"):
        download.fetch(small, target)
    assert server.ranges == [None]  # fetching it again would not help
    assert not [path for path in target.parents[1].rglob("*") if path.suffix in (".h5", ".zip")]


def test_links_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("volume_1_slice_0.h5")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "links.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match=r"volume_1_slice_0\.h5' in it is a link"):
        archives.unpack(tmp_path / "links.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def flipped(data: bytes) -> bytes:
    """One bit of a stored file changed: the archive's table is intact."""
    place = data.index(f"{INSIDE}/volume_1_slice_0.h5".encode())
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("damage", [flipped, lambda data: data[:-30], lambda data: b"", lambda data: b"<html>" * 99])
def test_damage_of_every_kind_is_recognised(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    data = zipped(slices())
    assert crc32(damage(data)) != crc32(data)
    (tmp_path / "some.zip").write_bytes(damage(data))
    with pytest.raises(archives.DamagedArchive, match=r"some\.zip is damaged"):
        archives.unpack(tmp_path / "some.zip", tmp_path / "out")


@pytest.mark.parametrize(
    ("dataset", "files", "said"),
    [
        (download.SEGMENTATION, slices(), "5 slices; WARNING: 57,195 were expected: volume_1 3 (not 155)"),
        (download.SEGMENTATION, slices("."), "5 slices"),
        (download.SEGMENTATION, {f"Case/Case_{part}.nii.gz": b"" for part in ("t1", "t1ce", "t2", "flair", "seg")},
         "cases in another layout"),
        (download.CLASSIFICATION, images({"Training/glioma": 2, "Testing/glioma": 1}), "3 images; WARNING"),
        (download.CLASSIFICATION, images({"archive/Training/glioma": 2}), "2 images"),
    ],
)  # fmt: skip
def test_a_set_put_there_by_hand_is_accepted_as_it_is(
    server: KaggleServer, tmp_path: Path, dataset: download.DataSet, files: dict[str, bytes], said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    target = tmp_path / dataset.name
    write(target, files)
    before = tree(target)
    download.fetch(dataset, target)
    assert f"left as it is: {said}" in capsys.readouterr().out
    assert tree(target) == before and not server.secrets


def test_a_folder_of_something_else_is_not_touched(
    server: KaggleServer, small: download.DataSet, target: Path
) -> None:
    write(target, {"thesis.txt": b"years of work"})
    with pytest.raises(ValueError, match="holds something, but no data set: move it away"):
        download.fetch(small, target)
    assert tree(target.parent) == {"segmentation/thesis.txt": b"years of work"} and not server.secrets


def test_a_mount_point_is_refused_before_anything_is_fetched(
    server: KaggleServer, small: download.DataSet, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: path == target.resolve())
    with pytest.raises(ValueError, match="is a mount point, which cannot be replaced"):
        download.fetch(small, target)
    assert not target.parent.exists() and not server.secrets


def test_a_folder_that_is_a_link_to_another_disk_is_filled(
    server: KaggleServer, small: download.DataSet, target: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk" / "brats"
    write(disk, {".keep": b""})
    target.parent.mkdir()
    target.symlink_to(disk)
    download.fetch(small, target)
    assert target.is_symlink() and tree(disk) == slices() | {".keep": b""}
    assert left(disk.parent) == ["brats"]


def test_a_second_process_waits_for_the_first(
    server: KaggleServer, small: download.DataSet, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = threading.Thread(target=download.fetch, args=(small, target))
    target.parent.mkdir()
    with FileLock(target.parent / ".segmentation.lock"):
        second.start()
        second.join(0.2)
        assert second.is_alive()
        write(target.parent / "whole", slices())
        (target.parent / "whole").rename(target)  # at once, wherever the other is
    second.join(60)
    assert "left as it is: 5 slices" in capsys.readouterr().out and not server.secrets


def test_of_two_that_start_together_one_fetches(server: KaggleServer, small: download.DataSet, target: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(download.fetch, [small] * 2, [target] * 2)) == [None, None]
    assert server.ranges == [None] and tree(target.parent).keys() == {f"segmentation/{name}" for name in slices()}


def test_one_that_is_stopped_while_it_waits_leaves_the_files_of_the_other_alone(
    small: download.DataSet, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(lock: FileLock) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FileLock, "acquire", stop)
    unpacked = target.parent / ".segmentation.download" / "unpacked"
    write(unpacked, slices())
    with pytest.raises(KeyboardInterrupt):
        download.fetch(small, target)
    assert tree(unpacked) == slices()


def test_an_archive_of_something_else_is_said_so(server: KaggleServer, small: download.DataSet, target: Path) -> None:
    server.data = zipped({"readme.txt": b"moved"})
    with pytest.raises(ValueError, match="holds no slices any more: see https://"):
        download.fetch(small, target)
    assert not left(target.parent)


@pytest.mark.real_data
def test_the_expected_counts_are_those_of_the_real_sets(real_data: Path) -> None:
    assert download.describe(download.CLASSIFICATION, real_data / "classification") == "7,023 images"
    with gzip.open(real_data / "meta" / "awsaf49_meta_data.csv.gz", "rt") as file:
        counts = Counter(f"volume_{row['volume']}" for row in csv.DictReader(file))
    assert counts.total() == 57_195 and counts == download.SEGMENTATION.expected


STARTER = """
from dataclasses import replace
from pathlib import Path
from kagglesdk import kaggle_env
kaggle_env._env_to_endpoint[kaggle_env.KaggleEnv.PROD] = {address!r}
from datasets import download
from utils import cli
download.HERE = Path({root!r})
download.SEGMENTATION = replace(download.SEGMENTATION, archive=0, unpacked=0)
cli.run(download.main, None, resumes=True)
"""


def start(server: KaggleServer, root: Path, **credentials: str) -> "subprocess.Popen[str]":
    """The command `download.py segmentation` in a process of its own, for a folder of this test."""
    code = STARTER.format(address=server.address, root=str(root))
    return subprocess.Popen(
        [sys.executable, "-c", code, "segmentation"], cwd=PROJECT, env=environment(root / "home") | credentials,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore Ctrl-C
    )  # fmt: skip


def test_ctrl_c_stops_with_75_and_the_same_command_goes_on(tmp_path: Path) -> None:
    with KaggleServer(zipped(slices())) as server:
        server.stall = True
        process = start(server, tmp_path, KAGGLE_USERNAME="someone", KAGGLE_KEY=KEY)
        while not [path for path in tmp_path.rglob("*.zip") if path.stat().st_size]:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=30)
        assert process.returncode == cli.INTERRUPTED, errors
        assert "stopped; the same command goes on" in errors and "Traceback" not in errors
        assert not (tmp_path / "segmentation").exists() and KEY not in out + errors
        (partial,) = tmp_path.rglob("*.zip")
        server.stall = False
        done = partial.stat().st_size
        process = start(server, tmp_path, KAGGLE_USERNAME="someone", KAGGLE_KEY=KEY)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert server.ranges == [None, None, f"bytes={done}-"] and "5 slices" in out


def test_a_fresh_process_without_credentials_says_one_sentence(tmp_path: Path) -> None:
    with KaggleServer(b"") as server:
        out, errors = start(server, tmp_path).communicate(timeout=60)
    assert len(errors.splitlines()) == 1 and errors.startswith("error: there are no Kaggle credentials") and not out


def test_the_script_works_from_any_folder(tmp_path: Path) -> None:
    script = [sys.executable, str(PROJECT / "datasets" / "download.py")]
    shown = subprocess.run([*script, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 0 and "segmentation" in shown.stdout
    refused = subprocess.run([*script, "everything"], cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == cli.BAD_INPUT and "Traceback" not in refused.stderr

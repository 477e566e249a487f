"""Unpacking an archive from the internet: whole or not at all, and never outside of its folder."""

import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PureWindowsPath

# what zipfile raises on damaged data; RuntimeError where the damage looks like a password or an unknown method
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, UnicodeDecodeError)


class DamagedArchive(ValueError):
    """An archive that cannot be read: to be fetched again."""


def unpack(archive: Path, target: Path) -> None:
    """Unpack a zip archive into a new folder, with a progress bar; whatever the folder held before is removed.

    The checksum of every file is checked. If anything fails, the folder may be left half-written: unpack into a
    temporary one, and rename it.

    Raises:
        DamagedArchive: it is cut off, damaged, or no zip archive.
        ValueError: a path in it is absolute, leads upwards or is a link: nothing was unpacked.
        OSError: the disk is too small.
    """
    from tqdm import tqdm

    shutil.rmtree(target, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as file:
            members = file.infolist()
            for member in members:
                _check(archive, member)
            require_space(target.parent, sum(member.file_size for member in members), f"unpack {archive.name}")
            for member in tqdm(members, desc="unpacking", unit="file", dynamic_ncols=True):
                file.extract(member, target)
    except DAMAGED as error:
        raise DamagedArchive(f"{archive.name} is damaged ({error})") from error


def _check(archive: Path, member: zipfile.ZipInfo) -> None:
    path = PureWindowsPath(member.filename)  # knows drives, and both slashes
    link = stat.S_ISLNK(member.external_attr >> 16)
    if path.drive or path.root or ".." in path.parts or link:
        what = "is a link" if link else "leads out of the folder"
        raise ValueError(f"{archive.name} was not unpacked: {member.filename!r} in it {what}, so do not trust it, and "
                         "report it where it came from")


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise OSError if the disk of a folder has fewer bytes left than needed."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"{needed / 1e9:.1f} GB are needed to {purpose}, but {folder} has {free / 1e9:.1f} GB: "
                      "free some, or make the data set's folder a link to one on a larger disk")

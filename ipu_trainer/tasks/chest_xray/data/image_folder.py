"""The image files below a folder, and which of them a name in a label table means."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Set

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.label_formats.identifiers import plain_name
from ipu_trainer.tasks.chest_xray.data.pixels import dicom
from ipu_trainer.tasks.folders import is_hidden

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", *dicom.SUFFIXES})


def is_image(path: Path) -> bool:
    """By the suffix; without one, or with digits as a UID ends, DICOM by its content."""
    suffix = os.path.splitext(path.name)[1].lower()
    return suffix in IMAGE_SUFFIXES or ((not suffix or suffix[1:].isdigit()) and dicom.is_dicom_file(path))


class ImageFolder:
    """Image files below a folder, without hidden ones (.ipynb_checkpoints, __MACOSX, ._name); links to folders are not followed.

    files: their paths relative to the folder. unusable: reasons by path, as it can be printed, of those that are never opened:
    pipes, devices, and names that are no UTF-8, which neither tables nor manifests can hold.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._root = folder.resolve()
        self._links: Set[str] = set()
        self.unusable: Dict[str, str] = {}
        self.files: Set[str] = set(self._walk(str(folder)))
        self._by_name: Dict[str, List[str]] = {}  # of files in subfolders
        for path in sorted(self.files):
            if "/" in path:
                self._by_name.setdefault(path.rsplit("/", 1)[-1], []).append(path)
        self._by_stem: Dict[str, List[str]] = {}  # made when a name without its file's suffix comes

    def locate(self, name: str, by_last_part: bool = True) -> Optional[str]:
        """The path that `name` means: itself, without its first folders, by its last part alone, or with another suffix.

        by_last_part: False where the last part is no image's own (CheXpert names each film of a patient view1_frontal.jpg).
        None if there is no such file. Raises UserError if the name leaves the folder or several files could be meant.
        """
        if name in self.files and name not in self._links:
            return name
        name = name if "\0" in name else plain_name(name)
        parts = name.replace("\\", "/").split("/")
        if (
            not name
            or name.startswith(("/", "\\"))
            or ".." in parts
            or "\0" in name
            or (len(name) > 1 and name[1] == ":")
        ):
            raise UserError("path leaves the image folder: use a file name below it")
        parts = [part for part in parts if part not in ("", ".")]
        path = next((end for end in _ends(parts) if end in self.files), None)
        path = path or (self._by_last_part(parts) if by_last_part else None)
        path = path or self._with_another_suffix(parts, by_last_part)
        if path in self._links and self._root not in (self._root / path).resolve().parents:
            raise UserError("path leaves the image folder through a symbolic link")
        return path

    def _by_last_part(self, parts: List[str]) -> Optional[str]:
        name = parts[-1] if parts else ""
        matches = self._by_name.get(name, [])
        count = len(matches) + (name in self.files)
        if count > 1:
            some = sorted([*matches[:3], *([name] if name in self.files else [])])[:3]
            raise UserError(f"ambiguous: {count:,} files have this name ({', '.join(some)})")
        return matches[0] if matches else name if count else None

    def _with_another_suffix(self, parts: List[str], by_last_part: bool) -> Optional[str]:
        """Tables name an image by its id alone (VinDr-CXR, RSNA), or by the file that it was before it was converted."""
        if not self._by_stem:
            for path in sorted(self.files):
                stem = os.path.splitext(path)[0]
                self._by_stem.setdefault(stem, []).append(path)
                if "/" in stem:
                    self._by_stem.setdefault("*/" + stem.rsplit("/", 1)[-1], []).append(path)
        for end in (*_ends(parts), *(["*/" + parts[-1]] if by_last_part and parts else [])):
            stem, suffix = os.path.splitext(end)
            matches = self._by_stem.get(stem if suffix.lower() in IMAGE_SUFFIXES else end, [])
            if len(matches) > 1:
                raise UserError(f"ambiguous: {len(matches):,} files have this name ({', '.join(matches[:3])})")
            if matches:
                return matches[0]
        return None

    def _walk(self, root: str) -> Iterator[str]:
        remaining = [(root, "")]
        while remaining:
            folder, prefix = remaining.pop()
            try:
                with os.scandir(folder) as entries:
                    visible = [entry for entry in entries if not is_hidden(entry.name)]
            except OSError as error:
                raise UserError(
                    f"{folder} cannot be read ({error.strerror}). Give yourself access, or move it away."
                ) from error
            for entry in visible:
                path = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    remaining.append((entry.path, f"{path}/"))
                elif _is_pipe_or_device(entry):
                    if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                        self.unusable[printable(path)] = "no regular file, but a pipe, a socket or a device"
                elif is_image(Path(entry.path)):
                    if printable(path) != path:
                        self.unusable[printable(path)] = "the name is no UTF-8: rename the file"
                        continue
                    if entry.is_symlink():
                        self._links.add(path)
                    yield path


def printable(path: str) -> str:
    """A path with what is no UTF-8 in it written as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _is_pipe_or_device(entry: os.DirEntry[str]) -> bool:
    """False for a link to nothing or to itself, which is an image that cannot be read."""
    if entry.is_file(follow_symlinks=False):
        return False
    try:
        mode = entry.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _ends(parts: List[str]) -> Iterator[str]:
    """a/b/c.png, b/c.png: whole paths of at least one folder, or the name where there is no folder."""
    for start in range(max(1, len(parts) - 1)):
        yield "/".join(parts[start:])

"""A prepared data set as a torch Dataset, which gathers whole micro-batches from the pixel store.

A key is a position in the data set, or a pair (epoch, position). With the epoch in the key, augmentation is a function of
(seed, epoch, sample) even in persistent worker processes. A plain position has epoch -1: it is no training sample, and
collators do not augment it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.image_decoding import Decoding
from ipu_trainer.tasks.chest_xray.data.integrity.digests import PixelCheck
from ipu_trainer.tasks.chest_xray.data.integrity.prepared_folder import (
    MANIFEST,
    PreparedError,
    check_rows,
    check_store,
    pixel_check,
    read_manifest,
    read_rows,
)
from ipu_trainer.tasks.chest_xray.data.labels import pathologies
from ipu_trainer.tasks.chest_xray.data.pixel_store import STORE_FILE, open_pixels
from ipu_trainer.tasks.chest_xray.data.splits import SPLITS

Key = Union[int, Tuple[int, int]]
Batch = Dict[str, torch.Tensor]


class ChestXrayDataset(Dataset):  # type: ignore[type-arg]  # Dataset is not generic at run time on torch 2.0
    """Samples of one split.

    `labels` float32 (num_samples, num_findings), `patient_ids`, `table` (columns of the metadata). A sample or batch is
    {"pixels": uint8 ([micro_batch,] height, width), "labels": float32 ([micro_batch,] num_findings),
    "epoch": int64 ([micro_batch]), "index": int64 ([micro_batch])}.
    """

    def __init__(
        self, store: Path, pixel_rows: np.ndarray, labels: np.ndarray, table: Dict[str, List[Any]], findings: List[str]
    ) -> None:
        self.findings = findings
        self.labels = labels
        self.table = table
        self._store = store
        self._pixel_rows = pixel_rows
        self._pixels: Optional[np.ndarray] = None

    @property
    def pixel_rows(self) -> np.ndarray:
        """int64 (num_samples,): where each image lies in the store."""
        return self._pixel_rows

    @property
    def patient_ids(self) -> List[str]:
        return list(self.table["patient_id"])

    def __len__(self) -> int:
        return len(self._pixel_rows)

    def __getitem__(self, key: Key) -> Batch:
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        if self._pixels is None:
            self._pixels = open_pixels(self._store)
        pairs = np.array([key if isinstance(key, tuple) else (-1, key) for key in keys], dtype=np.int64).reshape(-1, 2)
        index = pairs[:, 1]
        return {
            "pixels": _gather_rows(self._pixels, self._pixel_rows[index]),
            "labels": torch.from_numpy(self.labels[index]),
            "epoch": torch.from_numpy(pairs[:, 0].copy()),
            "index": torch.from_numpy(index.copy()),
        }

    def pixels(self) -> Iterator[np.ndarray]:
        """uint8 (height, width) of each image."""
        store = open_pixels(self._store)
        return (np.asarray(store[row]) for row in self._pixel_rows)

    def subset(self, positions: Sequence[int]) -> ChestXrayDataset:
        chosen = np.asarray(positions, dtype=np.int64)
        table = {name: [values[position] for position in chosen] for name, values in self.table.items()}
        return ChestXrayDataset(self._store, self._pixel_rows[chosen], self.labels[chosen], table, self.findings)

    def __getstate__(self) -> Dict[str, Any]:
        return {**self.__dict__, "_pixels": None}  # a worker process maps the file itself


def _gather_rows(pixels: np.ndarray, rows: np.ndarray) -> torch.Tensor:
    """pixels[rows], in pinned memory if a GPU is in use, which saves one copy on the way to the GPU."""
    in_use: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if not in_use or get_worker_info() is not None:
        return torch.from_numpy(pixels[rows])
    pinned = torch.empty((len(rows), *pixels.shape[1:]), dtype=torch.uint8, pin_memory=True)
    np.take(pixels, rows, axis=0, out=pinned.numpy(), mode="clip")  # all rows exist; any other mode copies once more
    return pinned


@dataclass(frozen=True)
class PreparedChestXrays:
    """A prepared data set: its manifest, and a ChestXrayDataset for each split."""

    folder: Path
    manifest: Dict[str, Any]
    everything: ChestXrayDataset

    @property
    def findings(self) -> List[str]:
        return list(self.manifest["findings"])

    @property
    def pathologies(self) -> List[str]:
        return pathologies(self.findings)

    @property
    def size(self) -> int:
        return int(self.manifest["size"])

    @property
    def decoding(self) -> Decoding:
        """How the images became pixels, which a new image must become too."""
        return Decoding.from_dict({**self.manifest, **self.manifest.get("decoding", {})})

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @functools.cached_property
    def pixel_check(self) -> PixelCheck:
        """The comparison of all pixels with their digest, which begins here, beside the work that uses them."""
        return pixel_check(self.folder, self.manifest, self.everything.pixel_rows)

    def split(self, name: str) -> ChestXrayDataset:
        """ "train", "validation", "test", or "all"."""
        if name == "all":
            return self.everything
        if name not in SPLITS:
            raise UserError(f"split {name!r} is not one of {', '.join(SPLITS)}, all.")
        where = self.everything.table["split"]
        return self.everything.subset([position for position, split in enumerate(where) if split == name])


def load_prepared(folder: Union[str, Path]) -> PreparedChestXrays:
    """Open a folder that `ipu-trainer prepare chest-xray` wrote. Raises PreparedError or StoreError if it is damaged.

    Everything but the pixels is compared with its digest here, the pixels by pixel_check.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise PreparedError(
            f"{folder} holds no finished data set ({MANIFEST} is missing). "
            f"Make it: ipu-trainer prepare chest-xray --csv CSV --images DIR --output {folder}"
        )
    manifest = read_manifest(folder)
    header = check_store(folder, manifest)
    rows = read_rows(check_rows(folder, manifest))
    columns: Dict[str, List[Any]] = {
        name: rows.column(name).to_pylist() for name in rows.column_names if name not in ("labels", "pixel_row")
    }
    flat = rows.column("labels").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    labels = np.array(flat, dtype=np.float32).reshape(len(rows), len(manifest["findings"]))
    pixel_rows = np.array(rows.column("pixel_row").to_pylist(), dtype=np.int64)
    if len(rows) != manifest["num_images"] or (len(rows) and int(pixel_rows.max()) >= header.num_rows):
        raise PreparedError(f"{folder}: metadata and pixel store disagree on the number of images. Prepare it again.")
    everything = ChestXrayDataset(folder / STORE_FILE, pixel_rows, labels, columns, list(manifest["findings"]))
    return PreparedChestXrays(folder, manifest, everything)

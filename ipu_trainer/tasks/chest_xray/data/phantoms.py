"""Synthetic chest X-rays: phantoms with patients, a visible sign for each finding, several findings an image and label noise.

With them the whole pipeline runs offline and a model learns in minutes. They look synthetic: scores on phantoms show that the
pipeline works, and say nothing about medicine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage
from tqdm import tqdm

from ipu_trainer.atomic import atomic_path, remove_leftovers, share_weights, write_csv
from ipu_trainer.errors import UserError
from ipu_trainer.tasks.chest_xray.data.labels import NIH_FINDINGS, NO_FINDING, pathologies
from ipu_trainer.tasks.output_guard import PHANTOMS, claim

Box = Tuple[float, float, float, float]  # left, top, width, height in fractions of the image's side
CSV_NAME = "phantoms.csv"
# Boxes of the signs in the format of NIH's BBox_List_2017.csv: pixels of a 1024 px image.
BOXES_NAME = "boxes.csv"
# Signs of the whole image or of both lungs, which a box would not localise.
_WITHOUT_BOX = ("Edema", "Emphysema", "Fibrosis", "Infiltration")


@dataclass(frozen=True)
class PhantomSettings:
    """num_images images of size x size pixels. label_noise: the fraction of images whose label lost or gained a finding."""

    num_images: int = 1500
    size: int = 128
    label_noise: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_images < 20 or not 32 <= self.size <= 1024 or not 0.0 <= self.label_noise < 1.0:
            raise UserError(
                f"phantoms need at least 20 images (given {self.num_images}), a size from 32 to 1024 (given {self.size}) "
                f"and a label noise from 0 to below 1 (given {self.label_noise})."
            )


def write_phantoms(folder: Path, settings: PhantomSettings, progress: bool = True) -> Path:
    """Write images/, boxes.csv and, last, phantoms.csv in NIH's layout; returns the path of phantoms.csv."""
    claim(folder, PHANTOMS)
    remove_leftovers(folder)
    generator = np.random.default_rng(settings.seed)
    rows: List[List[object]] = []
    boxes: List[List[object]] = []
    patient = 0
    bar = tqdm(total=settings.num_images, unit="image", desc="phantoms", disable=not progress)
    while len(rows) < settings.num_images:
        patient += 1
        body = PhantomAnatomy.draw(generator)
        age, sex = int(generator.integers(18, 90)), "FM"[int(generator.integers(2))]
        chronic = _draw_findings(generator)
        for visit in range(int(generator.choice([1, 1, 1, 2, 2, 3, 5]))):
            if len(rows) == settings.num_images:
                break
            findings = chronic if generator.random() < 0.7 else _draw_findings(generator)
            view = "AP" if generator.random() < (0.6 if findings else 0.3) else "PA"
            signs: Dict[str, List[Box]] = {}
            pixels = draw_phantom(body, findings, view, settings.size, generator, signs)
            name = f"{patient:08d}_{visit:03d}.png"
            with atomic_path(folder / "images" / name) as temporary:
                Image.fromarray(pixels).save(temporary, format="PNG")
            boxes += [
                [name, finding, *(round(1024 * v, 3) for v in box)] for finding, found in signs.items() for box in found
            ]
            labelled = _mislabel(findings, settings.label_noise, generator)
            rows.append([name, "|".join(labelled) or NO_FINDING, visit, patient, age, sex, view])
            bar.update(1)
    bar.close()
    write_csv(folder / BOXES_NAME, [["Image Index", "Finding Label", "Bbox [x,y,w,h]"], *boxes])
    head = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Sex", "View Position"]
    write_csv(folder / CSV_NAME, [head, *rows])
    return folder / CSV_NAME


def write_small_vit(folder: Path, size: int = 64, seed: int = 0) -> Path:
    """A small ViT with random weights and its preprocessor config, as a model folder: the demo's starting point."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=192,
        image_size=size,
        patch_size=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    share_weights(folder)
    ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class PhantomAnatomy:
    """A patient's anatomy, which all visits share, in fractions of the image's side."""

    width: float
    height: float
    tilt: float
    heart: float
    rib_phase: float
    density: float

    @classmethod
    def draw(cls, generator: np.random.Generator) -> PhantomAnatomy:
        return cls(
            width=float(generator.normal(0.165, 0.012)),
            height=float(generator.normal(0.30, 0.02)),
            tilt=float(generator.normal(0.0, 0.03)),
            heart=float(generator.normal(0.12, 0.007)),
            rib_phase=float(generator.uniform(0, 6.28)),
            density=float(generator.normal(0.0, 0.04)),
        )


def draw_phantom(
    body: PhantomAnatomy,
    findings: Tuple[str, ...],
    view: str,
    size: int,
    generator: np.random.Generator,
    signs: Optional[Dict[str, List[Box]]] = None,
) -> np.ndarray:
    """uint8 (size, size): one chest with the signs of its findings.

    signs: if given, gets the boxes of each finding that can be localised.
    """
    canvas = _Canvas(body, view, size, generator)
    for name in findings:
        before, heart = canvas.added.copy(), canvas.heart_width
        _SIGNS[name](canvas)
        if signs is not None and name not in _WITHOUT_BOX:
            change = np.abs(canvas.added - before)
            if canvas.heart_width != heart:
                change = canvas.heart()
            signs[name] = _boxes_around(change)
    return canvas.finish()


def _boxes_around(change: np.ndarray) -> List[Box]:
    """One box for each connected region above 40 % of the largest change."""
    regions, _ = ndimage.label(change >= 0.4 * change.max())
    height, width = change.shape
    return [
        (
            columns.start / width,
            rows.start / height,
            (columns.stop - columns.start) / width,
            (rows.stop - rows.start) / height,
        )
        for rows, columns in ndimage.find_objects(regions)
    ]


class _Canvas:
    def __init__(self, body: PhantomAnatomy, view: str, size: int, generator: np.random.Generator) -> None:
        self.random, self.size, self.body = generator, size, body
        jitter = generator.normal(0, 0.01, 2)
        y, x = np.mgrid[0:size, 0:size] / size
        self.x = x - 0.5 - jitter[0] + body.tilt * (y - 0.5)
        self.y = y - 0.5 - jitter[1]
        self.lung_height, self.heart_width = body.height, body.heart * (1.12 if view == "AP" else 1.0)
        self.air = 0.42
        self.added = np.zeros((size, size))
        self.view = view

    def blob(self, x: float, y: float, width: float, height: float, softness: float = 0.25) -> np.ndarray:
        """1 inside an ellipse, falling to 0 over its edge."""
        distance = ((self.x - x) / width) ** 2 + ((self.y - y) / height) ** 2
        return np.asarray(1.0 / (1.0 + np.exp(np.minimum((distance - 1.0) / softness, 50.0))))

    def lung(self, side: int) -> np.ndarray:
        return self.blob(side * 0.21, -0.02, self.body.width, self.lung_height, 0.12)

    def heart(self) -> np.ndarray:
        return self.blob(0.055, 0.13, self.heart_width, 0.13, 0.15)

    def lungs(self) -> np.ndarray:
        return np.asarray(np.maximum(self.lung(-1), self.lung(1)))

    def side(self) -> int:
        return -1 if self.random.random() < 0.5 else 1

    def between(self, low: float, high: float) -> float:
        return float(self.random.uniform(low, high))

    def noise(self, scale: int) -> np.ndarray:
        """Smooth noise with features of about scale pixels at 64, in [-1, 1]."""
        count = max(2, 64 // scale)
        coarse = Image.fromarray(self.random.uniform(-1, 1, (count, count)).astype(np.float32))
        return np.asarray(coarse.resize((self.size, self.size), Image.Resampling.BICUBIC))

    def finish(self) -> np.ndarray:
        body = self.blob(0, 0.05, 0.47, 0.62, 0.08)
        pixels = 0.08 + 0.62 * body + self.body.density
        pixels -= self.air * self.lungs()
        ribs = np.sin(46 * (self.y + 0.5 * self.x**2) + self.body.rib_phase)
        pixels += 0.05 * np.clip(ribs, 0, 1) * self.lungs()
        pixels += 0.20 * self.blob(0, 0.0, 0.055, 0.5, 0.3)
        pixels += 0.24 * self.heart()
        pixels += self.added
        pixels += 0.025 * self.noise(4) + self.random.normal(0, 0.02, pixels.shape)
        pixels = (pixels - pixels.mean()) * self.between(0.9, 1.1) + 0.45 + self.between(-0.04, 0.04)
        image = Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8))
        return np.asarray(image.filter(ImageFilter.GaussianBlur(self.size / 256)))

    # Signs of the findings.

    def atelectasis(self) -> None:
        side, y, slope = self.side(), self.between(0.0, 0.15), self.between(-0.3, 0.3)
        band = np.exp(-(((self.y - y - slope * self.x) / 0.016) ** 2))
        self.added += 0.30 * band * self.lung(side)

    def cardiomegaly(self) -> None:
        self.heart_width *= self.between(1.4, 1.65)

    def consolidation(self) -> None:
        patch = self.blob(self.side() * self.between(0.17, 0.25), self.between(-0.2, -0.05), 0.09, 0.09, 0.5)
        self.added += 0.34 * patch * self.lungs()

    def edema(self) -> None:
        for side in (-1, 1):
            self.added += 0.24 * self.blob(side * 0.14, -0.02, 0.10, 0.16, 0.8) * self.lung(side)

    def effusion(self) -> None:
        side, level = self.side(), self.between(0.06, 0.16)
        meniscus = level - 0.5 * np.abs(self.x - side * 0.12)
        self.added += 0.40 / (1 + np.exp(-(self.y - meniscus) / 0.012)) * self.lung(side)

    def emphysema(self) -> None:
        self.air += 0.12
        self.lung_height *= 1.16
        self.heart_width *= 0.8

    def fibrosis(self) -> None:
        mesh = np.sin(150 * self.x) * np.sin(150 * self.y)
        self.added += 0.16 * mesh * np.clip((self.y + 0.02) / 0.15, 0, 1) * self.lungs()

    def hernia(self) -> None:
        x, y = self.between(-0.02, 0.04), self.between(0.14, 0.2)
        self.added += 0.30 * self.blob(x, y, 0.10, 0.09, 0.1) - 0.46 * self.blob(x, y - 0.02, 0.065, 0.05, 0.15)

    def infiltration(self) -> None:
        self.added += 0.20 * np.clip(self.noise(5) + 0.2, 0, 1) * self.lungs()

    def mass(self) -> None:
        self.added += 0.36 * self.blob(self.side() * self.between(0.16, 0.27), self.between(-0.2, 0.1), 0.06, 0.06, 0.2)

    def nodule(self) -> None:
        for _ in range(int(self.random.integers(2, 5))):
            self.added += 0.40 * self.blob(
                self.side() * self.between(0.12, 0.29), self.between(-0.25, 0.15), 0.022, 0.022, 0.3
            )

    def pleural_thickening(self) -> None:
        side = self.side()
        rim = self.lung(side) - self.blob(side * 0.195, -0.02, self.body.width * 0.86, self.lung_height * 0.92, 0.12)
        self.added += 0.34 * np.clip(rim, 0, 1) * (side * self.x > 0.22)

    def pneumonia(self) -> None:
        patch = self.blob(self.side() * self.between(0.17, 0.25), self.between(0.08, 0.18), 0.10, 0.08, 0.6)
        self.added += 0.32 * patch * np.clip(0.7 + self.noise(6), 0, 1.3) * self.lungs()

    def pneumothorax(self) -> None:
        side = self.side()
        gone = self.lung(side) * (1 / (1 + np.exp(-(side * self.x - 0.25) / 0.008)))
        self.added += -0.16 * gone + 0.30 * self.lung(side) * np.exp(-(((side * self.x - 0.25) / 0.006) ** 2))


_SIGNS: Dict[str, Callable[[_Canvas], None]] = {n: getattr(_Canvas, n.lower()) for n in pathologies(NIH_FINDINGS)}


def _draw_findings(generator: np.random.Generator) -> Tuple[str, ...]:
    """No finding in a quarter of the visits, else one to four; some findings are rarer than others."""
    if generator.random() < 0.25:
        return ()
    names = sorted(_SIGNS)
    weights = np.array([0.4 if name in ("Hernia", "Fibrosis", "Edema") else 1.0 for name in names])
    count = int(generator.choice([1, 1, 2, 2, 3, 4]))
    chosen = generator.choice(len(names), count, replace=False, p=weights / weights.sum())
    return tuple(names[position] for position in sorted(chosen))


def _mislabel(findings: Tuple[str, ...], share: float, generator: np.random.Generator) -> Tuple[str, ...]:
    if generator.random() >= share:
        return findings
    if findings and generator.random() < 0.5:
        return findings[1:]
    return tuple(sorted({*findings, str(generator.choice(sorted(_SIGNS)))}))

"""What a preparation did: the counts of its manifest, and the text that the command prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence

from ipu_trainer.tasks.chest_xray.data.label_table import LabelTable, Row
from ipu_trainer.tasks.chest_xray.data.splits import SPLITS


@dataclass(frozen=True)
class PreparedSummary:
    """The result. rejected: lines of rejected.csv; finished is False if they stopped the run."""

    output: Path
    finished: bool
    reused: bool
    num_images: int
    rejected: int
    manifest: Dict[str, Any]

    def describe(self) -> str:
        if not self.finished:
            before = "" if self.manifest["decoded"] else " (images were not decoded yet)"
            return (
                f"Nothing was written: {self.rejected} lines or files cannot be used{before}. Format: "
                f"{self.manifest['format']}. {self.output / 'rejected.csv'} "
                "names each with its reason. Correct them, or leave them out with --skip_bad."
            )
        head = "already prepared with these settings" if self.reused else "prepared"
        left_out = f", {self.rejected} rejected (rejected.csv)" if self.rejected else ""
        absent, ages = self.manifest["rows_without_image"], self.manifest["unknown_ages"]
        left_out += f", {absent} rows without image left out" if absent else ""
        repeated = self.manifest.get("repeated_rows")
        left_out += f", {repeated} repeated rows" if repeated else ""
        unlabelled = self.manifest.get("rows_without_label")
        left_out += f", {unlabelled} without any label left out" if unlabelled else ""
        left_out += f", {ages} unknown ages" if 0 < ages < self.num_images else ""
        lines = [*self._about_labels(), *self._table(), *self._about_wide_images()]
        return f"{self.output}: {head}, {self.num_images:,} images{left_out}\n" + "\n".join(lines)

    def _about_labels(self) -> List[str]:
        """Of folders that this release made: the format and what its reader says."""
        labels = self.manifest.get("labels")
        if labels is None:
            return []
        header = [name for name in labels["header"] if name]
        columns = f" (columns {', '.join(header[:6])}{', ...' if len(header) > 6 else ''})" if header else ""
        lines = [f"format: {labels['format']}{columns}, read from {labels['table']}", *labels["notes"]]
        never = labels["never_positive"]
        if never:
            some = ", ".join(never[:20]) + (" ..." if len(never) > 20 else "")
            lines.append(f"never positive, so left out: {some}")
        return lines

    def _table(self) -> List[str]:
        counts = self.manifest["counts"]
        width = max(len(name) for name in self.manifest["findings"])
        patients = ["" if counts[split]["patients"] is None else f"{counts[split]['patients']:,}" for split in SPLITS]
        lines = [f"{'':{width}}  " + "  ".join(f"{split:>10}" for split in SPLITS)]
        lines.append(f"{'images':{width}}  " + "  ".join(f"{counts[split]['images']:>10,}" for split in SPLITS))
        if any(patients):
            lines.append(f"{'patients':{width}}  " + "  ".join(f"{value:>10}" for value in patients))
        for name in self.manifest["findings"]:
            values = "  ".join(f"{counts[split]['findings'][name]:>10,}" for split in SPLITS)
            unknown = [counts[split].get("unknown", {}).get(name, 0) for split in SPLITS]
            said = "  unknown: " + ", ".join(f"{value:,}" for value in unknown) if any(unknown) else ""
            lines.append(f"{name:{width}}  {values}{said}")
        return lines

    def _about_wide_images(self) -> List[str]:
        wide = self.manifest.get("wide_images")
        if not wide:
            return []
        largest = max(wide["whole"], wide["floating"])
        lines = [
            f"{wide['count']:,} images of more than 8 bits: the largest value is {largest:,g}, so {wide['white']:,} is white"
        ]
        if largest < wide["white"] / 4:
            lines.append(
                "All of these are dark, because their largest value is below a quarter of white. If that is only their scale, "
                "--window percentile scales each image by itself."
            )
        if wide["darker"]:
            lines.append(
                f"{wide['darker']:,} of these have much smaller values. That is right if they are dark; if their scale is "
                "another one (10-bit films among 12-bit ones), --window percentile scales each image by itself."
            )
        return lines


def about_labels(found: LabelTable, findings: Sequence[str], split_notes: Sequence[str]) -> Dict[str, Any]:
    """The manifest's labels: format, table, its header, notes, findings that are never positive, and what names patients."""
    labels = found.labels
    ids = "patients" if any(row.patient_id for row in found.rows) else "none"
    return {
        "format": labels.title,
        "table": str(labels.table),
        "header": labels.header,
        "notes": [*(f"also read: {path}" for path in labels.also), *labels.notes, *split_notes],
        "never_positive": sorted(set(labels.columns) - set(findings)),
        "ids": "studies" if ids == "none" and any(row.study_id for row in found.rows) else ids,
    }


def counts_of(rows: Sequence[Row], splits: Sequence[str], findings: Sequence[str]) -> Dict[str, Any]:
    """By split: images, patients (None where no id names them), positives by finding, and unknowns where there are some."""
    counts: Dict[str, Any] = {}
    has_patients = any(row.patient_id for row in rows)
    has_unknown = any(row.unknown for row in rows)
    for split in SPLITS:
        inside = [row for row, where in zip(rows, splits) if where == split]
        counts[split] = {
            "images": len(inside),
            "patients": len({row.patient_id for row in inside}) if has_patients else None,
            "findings": {name: sum(name in row.findings for row in inside) for name in findings},
        }
        if has_unknown:
            counts[split]["unknown"] = {name: sum(name in row.unknown for row in inside) for name in findings}
    return counts

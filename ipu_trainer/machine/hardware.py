"""IPUs and Pods: constants with the unit in the name and the source on the line above."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Dict, Tuple

from ipu_trainer.errors import UserError

# poptorch, popart_compiler/source/Utils.cpp: tiles of a Mk2 IPU.
TILES_PER_IPU = 1472
# popart, tests/integration/available_memory_proportion_test.py: 638,976 bytes a tile (624 KiB).
SRAM_BYTES_PER_TILE = 638_976
# 897 MiB, shared by all data, code and temporary memory of an IPU.
SRAM_BYTES_PER_IPU = TILES_PER_IPU * SRAM_BYTES_PER_TILE
# popart, docs/notes: one IPU computes 64 multiply-accumulates a tile and cycle in float16 with float16 partials.
FP16_MACS_PER_TILE_AND_CYCLE = 64
# A quarter of that in float32 (POD64 data sheet: 15.978 against 3.994 PFLOP/s).
FP32_MACS_PER_TILE_AND_CYCLE = 16


@dataclass(frozen=True)
class IPU:
    """One chip. GC200 ("Mk2") and Bow differ in clock alone."""

    name: str
    clock_hz: float

    @property
    def sram_bytes(self) -> int:
        return SRAM_BYTES_PER_IPU

    @property
    def peak_fp16_flop_per_s(self) -> float:
        """float16 multiply-accumulates with float16 partials, two operations each."""
        return 2.0 * FP16_MACS_PER_TILE_AND_CYCLE * TILES_PER_IPU * self.clock_hz

    @property
    def peak_fp32_flop_per_s(self) -> float:
        """For Bow this assumes that float32 scales with the clock: its data sheet gives float16 only."""
        return 2.0 * FP32_MACS_PER_TILE_AND_CYCLE * TILES_PER_IPU * self.clock_hz


# mlcommons training_results_v1.1 and v2.0, Graphcore/systems/ipu-pod16-POPART-closed.json.
GC200 = IPU("GC200", 1.33e9)
BOW = IPU("Bow", 1.85e9)


@dataclass(frozen=True)
class System:
    """A Pod: num_ipus chips of one kind."""

    name: str
    ipu: IPU
    num_ipus: int


# Graphcore's data sheets: POD4 and POD16 are attached directly, larger systems through switches.
SYSTEMS: Dict[str, System] = {
    system.name: system
    for system in (
        *(System(f"pod{count}", GC200, count) for count in (4, 8, 16, 32, 64, 128, 256)),
        *(System(f"bow-pod{count}", BOW, count) for count in (4, 8, 16, 32, 64, 128, 256)),
    )
}


def find_system(name: str) -> System:
    """A system by name; "bow_pod16" and "Bow-Pod16" are "bow-pod16". Raises UserError naming the nearest."""
    wanted = name.lower().replace("_", "-")
    if wanted in SYSTEMS:
        return SYSTEMS[wanted]
    near: Tuple[str, ...] = tuple(difflib.get_close_matches(wanted, SYSTEMS, n=2))
    raise UserError(f"system {name!r} is not one of {', '.join(SYSTEMS)}." + (f" Nearest: {near[0]}." if near else ""))

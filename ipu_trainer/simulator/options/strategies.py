"""Execution strategies: which stage, phase and IPU each block of a model belongs to.

A strategy has a stage resolver, which maps a block and the IPU of its annotation (if any) to a stage, a phase and an IPU. The
simulator calls it whenever a block begins, as the SDK's tracer does.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from ipu_trainer.simulator import enums
from ipu_trainer.simulator.logs import logger

BlockId = str


class Stage:
    """Blocks that run together on one IPU, in the given order."""

    def __init__(self, *block_ids: BlockId) -> None:
        assert all(isinstance(b, str) for b in block_ids), f"Block IDs are supposed to be strings but got {block_ids}"
        self._blocks = block_ids
        self._stage_id = -1
        self._phase_id = -1
        self._ipu: Optional[int] = None

    @property
    def blocks(self) -> Sequence[BlockId]:
        """The ids given."""
        return self._blocks

    def ipu(self, ipu: int) -> Stage:
        """Place the stage. Overrides the IPU of its blocks."""
        assert isinstance(ipu, int)
        self._ipu = ipu
        return self

    def _setStage(self, stage: int) -> Stage:
        self._stage_id = stage
        return self


class Phase:
    """Stages that run at the same time in phased execution."""

    def __init__(self, *arg: Union[BlockId, Stage]) -> None:
        self.stages: Tuple[Stage, ...]
        if all(isinstance(item, Stage) for item in arg):
            self.stages = tuple(item for item in arg if isinstance(item, Stage))
        else:
            blocks = [item for item in arg if isinstance(item, str)]
            assert len(blocks) == len(arg), "All arguments must either be block IDs (strings) or Stages: " + str(
                [type(item) for item in arg]
            )
            self.stages = (Stage(*blocks),)

    def stage(self, idx: int) -> Stage:
        """The idx-th stage."""
        return self.stages[idx]

    def ipus(self, *ipus: int) -> None:
        """Place the stages, one IPU each."""
        assert len(ipus) == len(self.stages), (
            f"Phase contains {len(self.stages)} stages but you provided {len(ipus)} ipus"
        )
        for stage, ipu in zip(self.stages, ipus):
            stage.ipu(ipu)


class StageResolver:
    """Maps blocks to stages. `named` holds the blocks that the strategy names; None accepts any block."""

    def __init__(self, named: Optional[Dict[BlockId, Stage]], auto_stage: enums.AutoStage) -> None:
        self._named = named
        self._auto_stage = auto_stage
        self._seen: Dict[BlockId, Stage] = {}
        self._next_auto_id = 0
        self._next_stage = 1

    def resetAutoId(self) -> None:
        """Number blocks without an id from 0 again; done at the start of every forward."""
        self._next_auto_id = 0

    def nextAutoId(self) -> str:
        """An id for a block that has none."""
        self._next_auto_id += 1
        return str(self._next_auto_id - 1)

    def resolve(self, block_id: BlockId, ipu_of_block: Optional[int]) -> Tuple[Stage, int]:
        """The stage of a block and the IPU it runs on.

        Raises AssertionError for a block that the strategy does not name, or that has no IPU where the IPU decides.
        """
        if self._named is not None:
            assert block_id in self._named, (
                f"Unknown Block '{block_id}' list of expected Blocks: {list(self._named.keys())}"
            )
            stage = self._named[block_id]
        elif block_id in self._seen:
            stage = self._seen[block_id]
        else:
            stage = self._seen[block_id] = Stage(block_id)._setStage(self._auto(block_id, ipu_of_block))
        ipu = stage._ipu if stage._ipu is not None else ipu_of_block
        return stage, stage._stage_id if ipu is None else ipu

    def _auto(self, block_id: BlockId, ipu_of_block: Optional[int]) -> int:
        if self._auto_stage == enums.AutoStage.SameAsIpu:
            assert ipu_of_block is not None, (
                f"poptorch.AutoStage.SameAsIpu was selected but no IPU was specified for block {block_id}"
            )
            return ipu_of_block
        self._next_stage += 1
        return self._next_stage - 1


class _IExecutionStrategy:
    mode = "Phased"

    def __init__(self, stages_manager: StageResolver, block_map: Dict[BlockId, Stage]) -> None:
        self._stages_manager = stages_manager
        self._block_map = block_map

    def stage(self, block_id: BlockId) -> Stage:
        """The stage that a block was given to."""
        assert block_id in self._block_map, f"Unknown block {block_id}"
        return self._block_map[block_id]

    def backendOptions(self) -> Dict[str, Union[int, bool]]:
        """The strategy's entries of Options.toDict()."""
        return {"execution_mode": ("Pipelined", "Sharded", "Phased").index(self.mode)}


class PipelinedExecution(_IExecutionStrategy):
    """Stages work on different micro-batches at the same time.

    Takes an AutoStage (default SameAsIpu: blocks on one IPU form one stage), or the stages in order: Stage objects,
    block ids, or lists of block ids.
    """

    mode = "Pipelined"

    def __init__(self, *args: Union[enums.AutoStage, Stage, str, List[str]]) -> None:
        block_map: Dict[BlockId, Stage] = {}
        auto_stage = enums.AutoStage.SameAsIpu
        if len(args) == 1 and isinstance(args[0], enums.AutoStage):
            auto_stage = args[0]
        else:
            for stage_id, arg in enumerate(args):
                _register(_as_stage(arg)._setStage(stage_id), f"stage {stage_id}", block_map)
        super().__init__(StageResolver(block_map or None, auto_stage), block_map)


class ShardedExecution(PipelinedExecution):
    """Stages work on one micro-batch in turn: same annotations, no overlap, no minimum of accumulation."""

    mode = "Sharded"


class _IPhasedExecution(_IExecutionStrategy):
    def __init__(self, *phases: Union[Phase, List[Stage], List[BlockId], BlockId, Stage]) -> None:
        assert phases, "There is currently no AutoStage for PhasedExecution, please explicitly specify the phases"
        self._tensors_liveness = enums.Liveness.AlwaysLive
        self._separate_backward_phase = False
        self._phases: List[Phase] = []
        block_map: Dict[BlockId, Stage] = {}
        for phase_id, args in enumerate(phases):
            phase = args if isinstance(args, Phase) else Phase(*(args if isinstance(args, list) else [args]))
            self._phases.append(phase)
            for stage in phase.stages:
                stage._phase_id = phase_id
                _register(stage, f"phase {phase_id}", block_map)
        super().__init__(StageResolver(block_map, enums.AutoStage.SameAsIpu), block_map)

    def phase(self, phase: int) -> Phase:
        """The phase of that number."""
        assert isinstance(phase, int) and phase >= 0, "Phases are identified by positive integers"
        return self._phases[phase]

    def useSeparateBackwardPhase(self, use: bool = True) -> Any:
        """Whether forward and backward of the last phase are separate phases."""
        assert isinstance(use, bool)
        self._separate_backward_phase = use
        return self

    def backendOptions(self) -> Dict[str, Union[int, bool]]:
        return {
            **super().backendOptions(),
            "separate_backward_phase": self._separate_backward_phase,
            "tensors_liveness": self._tensors_liveness.value,
        }


class ParallelPhasedExecution(_IPhasedExecution):
    """Phases alternate between two sets of IPUs."""

    def backendOptions(self) -> Dict[str, Union[int, bool]]:
        return {**super().backendOptions(), "serial_phases_execution": False}

    def sendTensorsOffChipAfterFwd(self, off_chip: bool = True) -> ParallelPhasedExecution:
        """Whether activations are stored off the chip between forward and backward."""
        assert isinstance(off_chip, bool)
        self._tensors_liveness = enums.Liveness.OffChipAfterFwd if off_chip else enums.Liveness.AlwaysLive
        return self


class SerialPhasedExecution(_IPhasedExecution):
    """Phases run one after the other on the same IPUs."""

    def setTensorsLiveness(self, liveness: enums.Liveness) -> SerialPhasedExecution:
        """Where tensors are stored between phases."""
        assert isinstance(liveness, enums.Liveness)
        self._tensors_liveness = liveness
        return self

    def backendOptions(self) -> Dict[str, Union[int, bool]]:
        return {**super().backendOptions(), "serial_phases_execution": True}


def _as_stage(arg: Any) -> Stage:
    if isinstance(arg, Stage):
        return arg
    blocks = [arg] if isinstance(arg, str) else arg
    assert all(isinstance(block, str) for block in blocks)
    return Stage(*blocks)


def _register(stage: Stage, where: str, block_map: Dict[BlockId, Stage]) -> None:
    for block in stage.blocks:
        assert block not in block_map, f"{block} associated with more than one stage"
        logger.debug("block %s added to %s%s", block, where, "" if stage._ipu is None else f" on IPU {stage._ipu}")
        block_map[block] = stage

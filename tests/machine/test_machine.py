import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipu_trainer.machine import hardware, liveness, placement, schedule
from ipu_trainer.machine.schedule import BACKWARD, FORWARD, RECOMPUTE, Action

pipelines = st.integers(1, 8).flatmap(lambda d: st.tuples(st.just(d), st.integers(2 * d - 1, 2 * d + 12)))


def test_a_pipeline_of_three_ipus_and_five_micro_batches_looks_like_this():
    assert schedule.pipelined_training(3, 5).grid() == (
        "IPU 0  F0 F1 F2   F3   F4B0 B1   B2   B3 B4\n"
        "IPU 1  .  F0 F1   F2B0 F3B1 F4B2 B3   B4 .\n"
        "IPU 2  .  .  F0B0 F1B1 F2B2 F3B3 F4B4 .  ."
    )


def test_recomputation_comes_right_before_the_backward_and_never_on_the_last_ipu():
    assert schedule.pipelined_training(2, 3, recompute=True).grid() == (
        "IPU 0  F0 F1   F2R0B0 R1B1 R2B2\nIPU 1  .  F0B0 F1B1   F2B2 ."
    )


def test_sharded_execution_lets_one_ipu_work_at_a_time():
    assert schedule.sharded_training(3, 2).grid() == (
        "IPU 0  F0 .  .    .  B0 F1 .  .    .  B1\n"
        "IPU 1  .  F0 .    B0 .  .  F1 .    B1 .\n"
        "IPU 2  .  .  F0B0 .  .  .  .  F1B1 .  ."
    )


@given(pipelines, st.booleans())
def test_every_micro_batch_visits_every_stage_once_forward_and_once_backward_in_order(geometry, recompute):
    num_ipus, num_micro_batches = geometry
    plan = schedule.pipelined_training(num_ipus, num_micro_batches, recompute)
    for micro_batch in range(num_micro_batches):
        seen = {kind: [] for kind in (FORWARD, RECOMPUTE, BACKWARD)}
        for cycle, work in enumerate(plan.cycles):
            for ipu, actions in enumerate(work):
                for action in actions:
                    if action.micro_batch == micro_batch:
                        seen[action.kind].append((cycle, ipu))
        assert [ipu for _, ipu in sorted(seen[FORWARD])] == list(range(num_ipus))
        assert [ipu for _, ipu in sorted(seen[BACKWARD])] == list(reversed(range(num_ipus)))
        assert max(seen[FORWARD])[0] <= min(seen[BACKWARD])[0]
        assert len(seen[RECOMPUTE]) == (num_ipus - 1 if recompute else 0)


@given(pipelines)
def test_no_ipu_runs_a_stage_twice_in_a_cycle_and_forward_comes_first(geometry):
    plan = schedule.pipelined_training(*geometry, recompute=True)
    for actions in itertools.chain.from_iterable(plan.cycles):
        kinds = [action.kind for action in actions]
        assert kinds == sorted(set(kinds), key="FRB".index)


@given(pipelines)
def test_cycles_and_stash_depths_follow_their_formulas(geometry):
    num_ipus, num_micro_batches = geometry
    plan = schedule.pipelined_training(num_ipus, num_micro_batches)
    assert plan.num_cycles == num_micro_batches + 2 * (num_ipus - 1)
    expected = [2 * (num_ipus - 1 - ipu) + 1 for ipu in range(num_ipus - 1)] + [0]
    assert liveness.stash_depths(plan) == tuple(expected)
    assert liveness.stash_bytes(plan, [10] * num_ipus) == tuple(10 * depth for depth in expected)
    for interval in liveness.stash_intervals(plan):
        assert interval.end - interval.start == 2 * (num_ipus - 1 - interval.ipu)


@given(pipelines, st.booleans())
def test_a_printed_schedule_is_parsed_back(geometry, recompute):
    plan = schedule.pipelined_training(*geometry, recompute)
    assert schedule.parse_grid(plan.grid()) == plan


@given(st.integers(1, 6), st.integers(0, 10))
def test_inference_fills_the_pipeline_and_stashes_nothing(num_ipus, more):
    plan = schedule.pipelined_inference(num_ipus, num_ipus + more)
    assert plan.num_cycles == 2 * num_ipus + more - 1
    assert liveness.stash_depths(plan) == (0,) * num_ipus
    assert schedule.sharded_inference(num_ipus, 3).num_cycles == 3 * num_ipus


def test_a_sharded_ipu_stashes_one_micro_batch_at_most():
    assert liveness.stash_depths(schedule.sharded_training(3, 4)) == (1, 1, 0)


def test_too_few_micro_batches_are_refused_with_the_rule():
    with pytest.raises(ValueError, match="6 micro-batches .* at least 2 x 4 - 1. Use a gradient accumulation of 7"):
        schedule.pipelined_training(4, 6)
    with pytest.raises(ValueError, match="deviceIterations of 4"):
        schedule.pipelined_inference(4, 3)
    with pytest.raises(ValueError, match="2 entries, but the schedule has 3 IPUs"):
        liveness.stash_bytes(schedule.pipelined_training(3, 5), [1, 2])


def test_cycles_can_be_looked_up():
    plan = schedule.pipelined_training(3, 5)
    assert (plan.cycle_of(1, FORWARD, 2), plan.cycle_of(0, BACKWARD, 0)) == (3, 4)
    with pytest.raises(KeyError, match="R0 never runs"):
        plan.cycle_of(0, RECOMPUTE, 0)
    assert str(Action(FORWARD, 3)) == "F3"


@pytest.mark.parametrize("text", ["IPU 1  F0", "IPU 0  X0", "IPU 0  F0 B0\nIPU 1  F0"])
def test_a_table_that_is_no_schedule_is_refused(text):
    with pytest.raises(ValueError):
        schedule.parse_grid(text)


costs = st.lists(st.integers(0, 9).map(float), max_size=9)


@given(costs, st.integers(1, 4), st.integers(0, 9), st.integers(0, 9))
def test_balanced_placement_is_the_best_of_all_contiguous_ones(layer_costs, num_ipus, first, last):
    def worst(counts):
        loads, start = [], 0
        for ipu, count in enumerate(counts):
            extra = (first if ipu == 0 else 0) + (last if ipu == num_ipus - 1 else 0)
            loads.append(sum(layer_costs[start : start + count]) + extra)
            start += count
        return max(loads)

    counts = placement.balance(layer_costs, num_ipus, first, last)
    assert sum(counts) == len(layer_costs) and len(counts) == num_ipus
    everything = (
        counts
        for counts in itertools.product(range(len(layer_costs) + 1), repeat=num_ipus)
        if sum(counts) == len(layer_costs)
    )
    assert worst(counts) == min(map(worst, everything))


def test_a_heavy_stem_gets_an_ipu_of_its_own():
    assert placement.balance([1.0] * 12, 4, first_cost=4.0) == (0, 4, 4, 4)
    assert placement.balance([1.0] * 12, 4) == (3, 3, 3, 3)


@given(st.lists(st.integers(-1, 5), min_size=1, max_size=6), st.integers(0, 40))
def test_placements_sum_to_the_layers_or_are_refused(layers_per_ipu, num_layers):
    try:
        resolved = placement.resolve_wildcards(layers_per_ipu, num_layers)
    except ValueError as error:
        assert f"the model has {num_layers}" in str(error)
    else:
        assert sum(resolved) == num_layers == len(placement.ipu_of_layer(resolved))
        assert all(given in (-1, count) for given, count in zip(layers_per_ipu, resolved))


def test_hardware_facts_are_those_of_the_data_sheets():
    assert hardware.SRAM_BYTES_PER_IPU == 940_572_672 and round(hardware.SRAM_BYTES_PER_IPU / 2**20) == 897
    assert hardware.GC200.peak_fp16_flop_per_s == pytest.approx(15.978e15 / 64, rel=0.01)
    assert hardware.GC200.peak_fp32_flop_per_s == pytest.approx(3.994e15 / 64, rel=0.01)
    assert hardware.BOW.peak_fp16_flop_per_s == pytest.approx(1.4e15 / 4, rel=0.01)
    assert hardware.find_system("Bow_Pod16").num_ipus == 16
    with pytest.raises(ValueError, match="Nearest: pod16"):
        hardware.find_system("pot16")

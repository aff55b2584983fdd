"""Combined batches, loaded here or by a process with a ring of buffers."""

import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ipu_trainer.simulator as simulator


class Numbers(torch.utils.data.Dataset):
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return torch.tensor(float(index)), torch.tensor(index)


class Broken(Numbers):
    def __getitem__(self, index):
        raise RuntimeError("the disk is gone")


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return (torch.tensor(float(i)) for i in range(10))


def options(iterations=1, accumulation=1, replicas=1):
    opts = simulator.Options().deviceIterations(iterations).replicationFactor(replicas)
    opts.Training.gradientAccumulation(accumulation)
    return opts


def values(loader):
    return [batch[1].tolist() for batch in loader]


def flat(lists):
    return [value for values_of_batch in lists for value in values_of_batch]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 4), st.integers(1, 60))
def test_a_combined_batch_is_one_host_step(iterations, accumulation, replicas, batch_size, length):
    loader = simulator.DataLoader(options(iterations, accumulation, replicas), Numbers(length), batch_size)
    step = iterations * accumulation * replicas * batch_size
    assert loader.combinedBatchSize == step and len(loader) == length // step
    assert flat(values(loader)) == list(range(length // step * step))


def test_the_tail_is_kept_when_asked_for_with_a_warning(caplog):
    loader = simulator.DataLoader(options(2), Numbers(7), 2, drop_last=False)
    assert values(loader) == [[0, 1, 2, 3], [4, 5, 6]] and len(loader) == 2
    assert "not divisible" in caplog.text


def test_a_batch_samplers_batches_are_combined():
    sampler = [[0, 1], [5, 4], [2, 3], [7, 6], [8, 9]]
    loader = simulator.DataLoader(options(2), Numbers(10), batch_sampler=sampler)
    assert values(loader) == [[0, 1, 5, 4], [2, 3, 7, 6]] and len(loader) == 2
    with pytest.raises(simulator.Error, match="mutually exclusive with batch_size"):
        simulator.DataLoader(options(2), Numbers(10), batch_size=2, batch_sampler=sampler)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(8, 60))
def test_processes_share_a_shuffled_data_set_without_overlap(processes, step, length):
    seen = []
    for process in range(processes):
        opts = options(step).randomSeed(3)
        opts.Distributed.configureProcessId(process, processes)
        loader = simulator.DataLoader(opts, Numbers(length), shuffle=True)
        seen.append([flat(values(loader)) for _ in range(2)])
    for epoch in range(2):
        together = flat(shares[epoch] for shares in seen)
        assert len(together) == len(set(together)) == length // (step * processes) * step * processes
    if length // (step * processes) * step >= 8:
        assert seen[0][0] != seen[0][1]


def test_shuffling_over_processes_needs_a_seed():
    opts = options()
    opts.Distributed.configureProcessId(0, 2)
    with pytest.raises(AssertionError, match="randomSeed"):
        simulator.DataLoader(opts, Numbers(8), shuffle=True)


def test_a_loading_process_gives_the_same_batches_epoch_after_epoch():
    expected = values(simulator.DataLoader(options(2), Numbers(13), 2))
    loader = simulator.DataLoader(options(2), Numbers(13), 2, mode=simulator.DataLoaderMode.Async)
    try:
        assert values(loader) == expected and values(loader) == expected and len(loader) == 3
        iterator = iter(loader)
        next(iterator)
        assert values(loader) == expected  # an epoch given up half-way leaves nothing behind
    finally:
        loader.terminate()


def test_a_rebatching_process_keeps_the_tail():
    loader = simulator.DataLoader(
        options(4),
        Numbers(11),
        drop_last=False,
        mode=simulator.DataLoaderMode.AsyncRebatched,
        rebatched_worker_size=3,
        async_options={"load_indefinitely": False},
    )
    try:
        for _ in range(2):
            assert values(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    finally:
        loader.terminate()


def test_returned_tensors_are_the_rings_own_and_are_overwritten():
    loader = simulator.DataLoader(
        options(), Numbers(9), 1, mode=simulator.DataLoaderMode.Async, async_options={"buffer_size": 2}
    )
    try:
        kept = [batch[1] for batch in loader]
        assert len(kept) == 9 and [int(tensor) for tensor in kept] != list(range(9))
        assert [int(batch[1].clone()) for batch in loader] == list(range(9))
    finally:
        loader.terminate()


def test_an_iterable_data_set_streams_through_a_process():
    accessor = simulator.AsynchronousDataAccessor(simulator.DataLoader(options(2), Stream(), 2))
    try:
        assert [batch.tolist() for batch in accessor] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    finally:
        accessor.terminate()
    with pytest.raises(AssertionError, match="The 'drop_last=False' option"):
        simulator.AsynchronousDataAccessor(simulator.DataLoader(options(2), Numbers(9), 2, drop_last=False))


def test_a_data_set_that_fails_is_told_with_its_reason():
    with pytest.raises(simulator.Error, match="failed to start.*the disk is gone"):
        simulator.DataLoader(options(), Broken(4), mode=simulator.DataLoaderMode.Async)
    with pytest.raises(simulator.Error, match="The Dataset is empty"):
        simulator.DataLoader(options(), Numbers(0), mode=simulator.DataLoaderMode.Async)


def test_a_program_that_forgets_to_terminate_ends_all_the_same(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent(
            """
            import torch
            import ipu_trainer.simulator as poptorch

            class Data(torch.utils.data.Dataset):
                def __len__(self): return 8
                def __getitem__(self, i): return torch.tensor(i)

            if __name__ == "__main__":
                loader = poptorch.DataLoader(poptorch.Options(), Data(), mode=poptorch.DataLoaderMode.Async)
                print(sum(int(b) for b in loader))
            """
        )
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == "28", done.stderr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipu_trainer.config.batching import BatchGeometry, batch_table
from ipu_trainer.config.ipu_config import IPUConfig

geometries = st.builds(BatchGeometry, st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(1, 4))


@given(geometries, st.integers(1, 5000))
def test_every_sample_of_an_epoch_is_used_dropped_or_repeated_and_steps_are_whole(geometry, num_samples):
    step = geometry.samples_per_host_step
    padded = geometry.epoch(num_samples, "pad")
    assert padded.host_steps * step == num_samples + padded.samples_padded
    assert 0 <= padded.samples_padded < step
    if num_samples >= step:
        dropped = geometry.epoch(num_samples, "drop")
        assert dropped.samples_used + dropped.samples_dropped == num_samples
        assert dropped.host_steps * step == dropped.samples_used
        assert dropped.weight_updates == dropped.host_steps * geometry.device_iterations
    partial = geometry.epoch(num_samples, "partial")
    assert (
        (partial.weight_updates - 1) * geometry.global_batch
        < num_samples
        <= partial.weight_updates * geometry.global_batch
    )


@given(geometries)
def test_processes_share_the_micro_batches_of_an_update_equally(geometry):
    for processes in range(1, geometry.replicas + 1):
        if geometry.replicas % processes == 0:
            each = geometry.accumulation_per_process(processes)
            assert each * processes * geometry.micro_batch == geometry.global_batch
        else:
            with pytest.raises(ValueError, match="cannot be spread"):
                geometry.accumulation_per_process(processes)


def test_a_data_set_smaller_than_a_host_step_is_refused_with_the_factor_to_lower():
    geometry = BatchGeometry.from_config(IPUConfig(gradient_accumulation_steps=128), 2)
    with pytest.raises(ValueError, match="100 samples are fewer than the 256 .* Lower gradient_accumulation_steps"):
        geometry.epoch(100)


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_counts_are_whole_numbers(value):
    with pytest.raises(ValueError, match="micro_batch"):
        BatchGeometry(value)


def test_table_of_the_tutorials_job():
    geometry = BatchGeometry.from_config(IPUConfig(gradient_accumulation_steps=128, device_iterations=2), 1)
    assert (
        batch_table(geometry, geometry.epoch(106514))
        == """\
micro-batch                     1  samples in one forward pass of one replica
gradient accumulation         128  micro-batches per weight update and replica
replicas                        1  over 1 process
device iterations               2  weight updates per host step
global batch                  128  samples per weight update
samples per host step         256  global batch x device iterations
samples                   106,514  in the training set
host steps per epoch          416
weight updates per epoch      832
samples dropped                18  per epoch, other ones each time when shuffled
samples padded                  0  repeated per epoch to fill the last host step"""
    )

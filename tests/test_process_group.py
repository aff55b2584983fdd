"""The end of torch.distributed: closed by the command that opened it, left to whoever had it before."""

import pytest
import torch

from ipu_trainer import process_group


def _open(folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)


@pytest.fixture(autouse=True)
def _closed_afterwards():
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_a_group_that_the_command_opened_is_closed_with_it(tmp_path):
    with process_group.closed_at_the_end():
        _open(tmp_path)
        torch.distributed.all_reduce(torch.ones(3))
    assert not torch.distributed.is_initialized()


def test_a_group_of_the_calling_program_stays_open(tmp_path):
    _open(tmp_path)
    with process_group.closed_at_the_end():
        torch.distributed.all_reduce(torch.ones(3))
    assert torch.distributed.is_initialized()


def test_after_an_error_nothing_waits_for_processes_that_may_be_stuck(tmp_path):
    with pytest.raises(ZeroDivisionError), process_group.closed_at_the_end():
        _open(tmp_path)
        raise ZeroDivisionError
    assert torch.distributed.is_initialized()


def test_without_a_group_nothing_happens():
    with process_group.closed_at_the_end():
        pass
    assert not torch.distributed.is_initialized()

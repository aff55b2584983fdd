"""Two processes of torch.distributed that have imported what the test has: imports would take longer than their training."""

import multiprocessing
import os
import socket

from accelerate.state import AcceleratorState, GradientState


def call_in_two(function, *arguments):
    """function(*arguments) in two processes with the environment that torchrun gives; both must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_call, args=(rank, port, function, arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=180)
    assert [process.exitcode for process in processes] == [0, 0]


def _call(rank, port, function, arguments):
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    GradientState._reset_state()
    AcceleratorState._reset_state(reset_partial_state=True)  # it remembers a world of one process
    function(*arguments)

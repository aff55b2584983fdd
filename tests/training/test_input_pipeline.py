"""The way of a tensor to a GPU, told apart by what it asks CUDA for: on a machine without one this test has a CUDA of its own."""

import contextlib

import pytest
import torch

from ipu_trainer.training.acceleration import input_pipeline


class Tensor:
    """Writes down what is done with it."""

    device = torch.device("cpu")

    def __init__(self, events, pinned):
        self.events, self.pinned = events, pinned

    def is_pinned(self):
        return self.pinned

    def pin_memory(self):
        self.events.append("pin")
        return Tensor(self.events, True)

    def to(self, device, non_blocking=False):
        self.events.append(("copy", "pinned" if self.pinned else "pageable", str(device), non_blocking))
        return self

    def record_stream(self, stream):
        self.events.append(("kept for", stream))


class Stream:
    def __init__(self, events):
        self.events = events

    def wait_stream(self, other):
        self.events.append(("work waits for", other))


@pytest.fixture
def cuda(monkeypatch):
    """The events of a CUDA whose work runs on `work` and whose copies on `copies`."""
    events = []
    work = Stream(events)

    @contextlib.contextmanager
    def stream(name):
        events.append(f"on {name}")
        yield
        events.append("back")

    monkeypatch.setattr(input_pipeline, "_copy_stream", lambda number: f"copies {number}")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda number: work)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    return events, work


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize(("device", "number"), [("cuda", 1), ("cuda:0", 0)])
def test_a_copy_runs_beside_the_work_which_waits_for_it_and_keeps_its_memory(cuda, pinned, device, number):
    events, work = cuda
    input_pipeline.copy_to_device(Tensor(events, pinned), torch.device(device))
    assert events == [
        *([] if pinned else ["pin"]),
        f"on copies {number}",
        ("copy", "pinned", device, True),
        "back",
        ("work waits for", f"copies {number}"),
        ("kept for", work),
    ]


def test_a_tensor_for_the_cpu_is_not_pinned(cuda):
    events, _ = cuda
    input_pipeline.copy_to_device(Tensor(events, False), torch.device("cpu"))
    assert events == [("copy", "pageable", "cpu", True)]

"""The private parts of torch that this package reads are what it takes them for."""

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ipu_trainer.compat.torch_modules import forward_pre_hooks, own_children, own_tensors
from ipu_trainer.compat.torch_operators import (
    TorchDispatchMode,
    functions_named,
    num_writes,
    operator_arguments,
    operator_name,
    storage_id,
    without_torch_function,
)


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operators = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators[operator_name(func)] = [argument.name for argument in operator_arguments(func)]
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_operators_with_names_and_arguments():
    x = torch.ones(2, requires_grad=True)
    with Seen() as seen:
        (x * 2).sum().backward()
    assert {"mul", "sum", "expand"} <= set(seen.operators)  # expand: backward of sum
    assert seen.operators["mul"] == ["self", "other"]


def test_functions_are_found_under_every_name():
    called = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            called.append(func)
            return func(*args, **(kwargs or {}))

    found = functions_named("linear", "matmul")
    assert {torch.matmul, torch.Tensor.matmul, functional.linear} <= found
    with Mode():
        nn.Linear(2, 2)(torch.ones(1, 2))
    assert found & set(called)


def test_subclasses_are_plain_tensors_without_torch_function():
    class Refusing(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            raise AssertionError(func)

    x = torch.ones(2)
    x.__class__ = Refusing
    with without_torch_function():
        assert torch.add(x, x).tolist() == [2, 2]


def test_views_share_a_storage_on_the_meta_device():
    x, y = torch.empty(2, 2, device="meta"), torch.empty(2, 2, device="meta")
    assert storage_id(x) == storage_id(x[0]) != storage_id(y)


def test_the_version_counts_writes_through_views():
    x = torch.zeros(2)
    before = num_writes(x)
    x + 1
    assert num_writes(x) == before
    x[0].add_(1)
    assert num_writes(x) > before


def test_tensors_of_a_module_can_be_exchanged_in_place():
    module = nn.BatchNorm1d(2)
    parameters, buffers = own_tensors(module)
    parameters["weight"] = nn.Parameter(torch.full((2,), 5.0))
    buffers["running_mean"] = torch.full((2,), 7.0)
    assert module.weight.tolist() == [5, 5] and module.running_mean.tolist() == [7, 7]


def test_children_include_absent_and_repeated_ones():
    module, child = nn.Module(), nn.Linear(1, 1)
    module.first, module.again = child, child
    module.register_module("absent", None)
    assert own_children(module) == {"first": child, "again": child, "absent": None}


def test_pre_hooks_can_be_listed_and_removed():
    module, called = nn.Linear(1, 1), []
    hook = lambda *_: called.append(1)  # noqa: E731
    handle = module.register_forward_pre_hook(hook)
    module(torch.ones(1))
    (number,) = forward_pre_hooks(module)
    assert forward_pre_hooks(module)[number] is hook
    del forward_pre_hooks(module)[number]
    module(torch.ones(1))
    handle.remove()  # of what is gone: no error
    assert called == [1]

"""gelu's backward on the CPU of torch 2.0, where the gradient is a transposed view and the input is not."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from ipu_trainer.compat import torch_workarounds
from ipu_trainer.compat.torch_workarounds import contiguous_gelu_gradients


class Holder(nn.Module):
    """As the activation modules of Transformers do."""

    def __init__(self):
        super().__init__()
        self.act = functional.gelu

    def forward(self, x):
        return self.act(x)


@pytest.mark.parametrize("model", [Holder(), nn.GELU()])
def test_the_gradient_is_that_of_double_precision(model):
    # Other memory is written first, so that unwritten memory is not zero by chance.
    x = torch.randn(4, 64, 32, generator=torch.Generator().manual_seed(0))
    expected = x.double().requires_grad_()
    weights = torch.randn(4, 32, 64, generator=torch.Generator().manual_seed(1))
    (functional.gelu(expected).transpose(1, 2).contiguous() * weights.double()).sum().backward()
    for _ in range(5):
        torch.full((1 << 20,), float("nan"))
        given = x.clone().requires_grad_()
        with contiguous_gelu_gradients(model):
            result = model(given)
        (result.transpose(1, 2) * weights).sum().backward()
        torch.testing.assert_close(given.grad.double(), expected.grad, rtol=1e-5, atol=1e-6)


def test_nothing_is_left_behind():
    model, gelu = Holder(), functional.gelu
    with contiguous_gelu_gradients(model):
        assert (functional.gelu is not gelu) == torch_workarounds.GELU_NEEDS_CONTIGUOUS_GRADIENT
    assert functional.gelu is gelu
    assert model.act is gelu

"""What the kernels for ViT's layers compute: against numeric gradients on a CPU, against float64 and the library on a GPU."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

pytestmark = pytest.mark.skipif(
    not hasattr(torch.library, "triton_op"), reason="torch has no operations made of Triton kernels"
)
on_h100 = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="no H100"
)


def test_attention_and_gelu_hold_against_numeric_gradients_and_their_declared_shapes():
    from ipu_trainer.training.acceleration.fused_kernels.attention import packed_attention
    from ipu_trainer.training.acceleration.fused_kernels.bias_gelu import bias_gelu
    from ipu_trainer.training.acceleration.fused_kernels.operations import operations

    packed = torch.randn(2, 5, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: packed_attention(value, None, None, 0.5), packed)
    biases = [torch.randn(8, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def attended(is_constant):
        added = torch.stack([*biases, torch.zeros(8)]).view(3, 2, 4)
        if is_constant:
            return packed_attention(packed + added.detach(), *biases, 0.5)
        return packed_attention(packed + added, None, None, 0.5)

    weights = torch.randn(2, 5, 2, 4, dtype=torch.float64)
    ours, wanted = (torch.autograd.grad((attended(one) * weights).sum(), biases) for one in (True, False))
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-13)
    product = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bias_gelu, (product, bias))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        values = packed.detach().to(dtype)
        read, log_sums = operations.packed_attention(values, None, None, 0.5)
        torch.library.opcheck(
            operations.packed_attention.default, (values.requires_grad_(), *(bias.to(dtype) for bias in biases), 0.5)
        )
        given = (torch.ones_like(read), values.detach(), read, log_sums, 0.5)
        torch.library.opcheck(operations.packed_attention_backward.default, given)
        given = (torch.ones(2, 3, 5, dtype=dtype), product.detach().to(dtype), bias.detach().to(read.dtype))
        torch.library.opcheck(operations.bias_gelu_backward.default, given)
        torch.library.opcheck(operations.bias_gelu.default, (given[1].requires_grad_(), given[2].requires_grad_()))


@pytest.mark.parametrize(("drop_mask", "norm_before_drop"), [(None, False), ([0.0, 1.25], False), ([0.0, 1.25], True)])
def test_a_sum_and_its_norm_hold_against_torchs_and_numeric_gradients_and_declared_shapes(drop_mask, norm_before_drop):
    from ipu_trainer.training.acceleration.fused_kernels.operations import operations
    from ipu_trainer.training.acceleration.fused_kernels.residual_norm import residual_norm

    double = {"dtype": torch.float64, "requires_grad": True}
    given = [
        torch.randn(2, 3, 6, **double),
        torch.randn(2, 3, 6, **double),
        *(torch.randn(6, **double) for _ in range(3)),
    ]
    drop_mask = None if drop_mask is None else torch.tensor(drop_mask, dtype=torch.float64)
    residual, product, bias, weight, norm_bias = given
    total, normalised = residual_norm(*given, 1e-5, drop_mask, norm_before_drop)
    wanted = residual + (product + bias) * (1 if drop_mask is None else drop_mask[:, None, None])
    torch.testing.assert_close(total, wanted, rtol=0, atol=1e-14)
    read = residual + product + bias if norm_before_drop else wanted
    torch.testing.assert_close(normalised, functional.layer_norm(read, (6,), weight, norm_bias), rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(lambda *values: residual_norm(*values, 1e-5, drop_mask, norm_before_drop), given)
    for stream, products in ((torch.float64, torch.float64), (torch.float32, torch.bfloat16), (torch.bfloat16,) * 2):
        values = [value.detach().to(dtype) for value, dtype in zip(given, (stream, products, *(torch.float32,) * 3))]
        values = [*(value.requires_grad_() for value in values), 1e-5, drop_mask, norm_before_drop]
        torch.library.opcheck(operations.residual_norm.default, values)


def test_operations_of_other_code_have_other_names(tmp_path):
    """Else what an older version left in torch's cache of compiled code would be used."""
    from ipu_trainer.training.acceleration.fused_kernels import attention, operations

    names = set()
    for code in ("", "one = 1", "one = 2"):
        (tmp_path / "kernel.py").write_text(code)
        names.add(operations.namespace_of(tmp_path))
    assert len(names) == 3
    folder = Path(attention.__file__).parent
    assert operations.NAMESPACE == operations.namespace_of(folder)
    assert attention._backward._qualname == f"{operations.NAMESPACE}::packed_attention_backward"


def attention_case(batch, tokens, heads, seed=0):
    torch.manual_seed(seed)
    return torch.randn(batch, tokens, 3, heads, 64).bfloat16(), torch.randn(batch, tokens, heads, 64).bfloat16()


@on_h100
@pytest.mark.parametrize(
    ("batch", "tokens", "heads"), [(3, 129, 5), (1, 160, 1), (2, 197, 12), (2, 250, 2), (5, 256, 3)]
)
def test_the_gpus_attention_is_as_exact_as_the_librarys(batch, tokens, heads):
    from ipu_trainer.training.acceleration.fused_kernels.attention import packed_attention
    from ipu_trainer.training.acceleration.fused_kernels.operations import operations

    values, weights = attention_case(batch, tokens, heads)
    exact = values.double().requires_grad_()
    (packed_attention(exact, None, None, 0.125) * weights).sum().backward()
    ours, library = values.cuda().requires_grad_(), values.cuda().requires_grad_()
    (packed_attention(ours, None, None, 0.125) * weights.cuda()).sum().backward()
    heads_first = [library[:, :, part].transpose(1, 2) for part in range(3)]
    read = functional.scaled_dot_product_attention(*heads_first, scale=0.125).transpose(1, 2)
    (read * weights.cuda()).sum().backward()
    for part in range(3):
        wanted = exact.grad[:, :, part]
        error, usual = ((value.grad[:, :, part].cpu() - wanted).abs().max() for value in (ours, library))
        assert error <= 1.5 * usual and error < 0.01 * wanted.abs().max()
    read, log_sums = operations.packed_attention(values.cuda(), None, None, 0.125)
    _, sums = operations.packed_attention_backward(weights.cuda(), values.cuda(), read, log_sums, 0.125)
    wanted = exact.grad[:, :, 0].sum(1).flatten(1)
    assert (sums.cpu() - wanted).norm() < 0.01 * wanted.norm()


@on_h100
@pytest.mark.parametrize(("shape", "width"), [((2, 197), 96), ((1, 3), 200), ((4, 300), 3072)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_gpus_gelu_rounds_once(shape, width, dtype):
    from ipu_trainer.training.acceleration.fused_kernels.bias_gelu import bias_gelu

    torch.manual_seed(0)
    product, bias, weights = (
        torch.randn(*shape, width).to(dtype),
        torch.randn(width),
        torch.randn(*shape, width).to(dtype),
    )
    exact = [product.double().requires_grad_(), bias.double().requires_grad_()]
    wanted = bias_gelu(*exact)
    (wanted * weights.double()).sum().backward()
    ours = [product.cuda().requires_grad_(), bias.cuda().requires_grad_()]
    made = bias_gelu(*ours)
    (made * weights.cuda()).sum().backward()
    step = 4 * torch.finfo(dtype).eps if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(made.cpu().double(), wanted, rtol=step, atol=step)
    torch.testing.assert_close(ours[0].grad.cpu().double(), exact[0].grad, rtol=step, atol=step)
    torch.testing.assert_close(ours[1].grad.cpu().double(), exact[1].grad, rtol=1e-5, atol=1e-4)


@on_h100
@pytest.mark.parametrize(("batch", "tokens", "width"), [(2, 197, 768), (3, 43, 96), (1, 1, 1024), (5, 130, 384)])
@pytest.mark.parametrize("stream", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("skips", "norm_before_drop"), [(False, False), (True, False), (True, True)])
def test_the_gpus_sum_and_norm_round_once(batch, tokens, width, stream, skips, norm_before_drop):
    from ipu_trainer.training.acceleration.fused_kernels.residual_norm import residual_norm

    torch.manual_seed(0)
    shape, drop_mask = (batch, tokens, width), torch.tensor([1.25, 0.0, 1.25, 1.25, 0.0])[:batch] if skips else None
    given = [torch.randn(shape).to(stream), torch.randn(shape).bfloat16(), *(torch.randn(width) for _ in range(3))]
    weights = [torch.randn(shape).to(stream), torch.randn(shape).bfloat16()]
    if norm_before_drop:  # nothing comes back from behind what is skipped
        weights[1] *= (drop_mask > 0)[:, None, None]

    def made(values, factors):
        values = [value.detach().requires_grad_() for value in values]
        also = None if drop_mask is None else drop_mask.to(values[0].device)
        outputs = residual_norm(*values, 1e-6, also, norm_before_drop)
        sum((output * factor).sum() for output, factor in zip(outputs, factors)).backward()
        return [value.detach().cpu().double() for value in (*outputs, *(value.grad for value in values))]

    ours = made([value.cuda() for value in given], [factor.cuda() for factor in weights])
    wanted = made([value.double() for value in given], [factor.double() for factor in weights])
    bits, stream_step = 2.0**-8, 2.0**-8 if stream == torch.bfloat16 else 1e-5
    for one, other, step in zip(ours, wanted, (stream_step, bits, stream_step, bits)):
        # What a bfloat16 stream rounds in the sum the norm reads.
        atol = 8 * bits if stream == torch.bfloat16 else step
        torch.testing.assert_close(one, other, rtol=step, atol=atol)
    for one, other in zip(ours[4:], wanted[4:]):
        limit = 0.02 if stream == torch.bfloat16 else 1e-5
        torch.testing.assert_close(one, other, rtol=0, atol=float(limit * max(1, other.abs().max())))

"""A model's repeated layers, their depths, and its plain linear layers."""

from __future__ import annotations

from types import MethodType
from typing import Any, Callable, Dict, List, Tuple

from torch import nn

from ipu_trainer.compat.torch_acceleration import has_hooks
from ipu_trainer.errors import UserError

# Layers whose outputs and running statistics depend on the other samples of a micro-batch.
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def layer_stacks(model: nn.Module) -> List[Tuple[str, nn.ModuleList]]:
    """(name, layers) of each outermost ModuleList of at least two layers of one class, in registration order.

    An encoder-decoder has two; a model without repeated layers has none.
    """
    stacks: List[Tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        if any(name.startswith(outer + ".") for outer, _ in stacks):
            continue
        if isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(layer) for layer in module}) == 1:
            stacks.append((name, module))
    return stacks


def bind_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Replace the module's forward; `del module.__dict__["forward"]` undoes it.

    As a bound method: deepcopy rebinds it to the copy's weights, and unpickling, by its name, restores the class's forward.
    """
    forward.__name__ = "forward"
    module.__dict__["forward"] = MethodType(forward, module)


def is_plain_linear(module: Any) -> bool:
    """Exactly nn.Linear with its class's forward and without hooks (adapters and quantised layers compute something else)."""
    return type(module) is nn.Linear and "forward" not in module.__dict__ and not has_hooks(module)


def has_plain_projections(attention: Any) -> bool:
    """Whether an attention module has query, key and value projections that are plain linear layers of one input width."""
    found: List[Any] = [getattr(attention, name, None) for name in ("q_proj", "k_proj", "v_proj")]
    return all(map(is_plain_linear, found)) and len({(one.in_features, one.bias is None) for one in found}) == 1


def parameter_depths(model: nn.Module) -> Tuple[Dict[str, int], int]:
    """Depth of every parameter by name, and the largest depth.

    0 is the stem (what is registered before the first layer), 1 the first layer, ..., the number of layers + 1 whatever
    follows the last one. A pyramid's layers are its stages (Swin, ConvNeXt, ResNet). Models of timm have depths of their own:
    its coarse groups, which are stages of pyramids and blocks of ViTs. Raises UserError if the model has no repeated layers.
    """
    for name, part in model.named_modules():
        if hasattr(part, "group_matcher"):
            return _timm_depths(model, name, part)
    stacks = layer_stacks(model)
    if not stacks:
        raise UserError(
            f"{type(model).__name__} has no repeated layers (a ModuleList of one class), so layers have no depth. "
            "Use layer_decay=1 and drop_path=0."
        )
    layers = [f"{name}.{position}." for name, stack in stacks for position in range(len(stack))]
    depths: Dict[str, int] = {}
    current = 0
    for name, _ in model.named_parameters():
        inside = [depth for depth, prefix in enumerate(layers, 1) if name.startswith(prefix)]
        if inside:
            depths[name] = current = inside[0]
        else:
            depths[name] = 0 if current == 0 else len(layers) + 1
    return depths, len(layers) + 1


def _timm_depths(model: nn.Module, name: str, part: Any) -> Tuple[Dict[str, int], int]:
    """parameter_depths() of a model that holds a model of timm; what is outside of that is as deep as its classifier."""
    from timm.models import group_parameters

    inside = group_parameters(part, part.group_matcher(coarse=True), reverse=True)
    deepest = max(inside.values())
    prefix = name + "." if name else ""
    depths = {parameter: inside.get(parameter[len(prefix) :], deepest) for parameter, _ in model.named_parameters()}
    return depths, deepest


def head_parameters(model: nn.Module) -> List[str]:
    """Names of the parameters of the task's head: outside the pre-trained base model, or of its classifier, where it has one."""
    prefix = getattr(model, "base_model_prefix", "")
    base = getattr(model, prefix, None) if prefix else None
    if base is None:
        return []
    inside = tuple(f"{prefix}.{name}." for name in classifiers_of(base))
    return [
        name for name, _ in model.named_parameters() if not name.startswith(prefix + ".") or name.startswith(inside)
    ]


def classifiers_of(base: Any) -> List[str]:
    """Names of the modules that a model of timm calls its classifier; none for other models."""
    found = base.get_classifier() if hasattr(base, "get_classifier") else ()
    modules = found if isinstance(found, (tuple, list)) else (found,)
    return [name for name, part in base.named_modules() if any(part is one for one in modules)]


def keeps_width(layers: nn.ModuleList) -> bool:
    """Whether all layers have weights of the same shapes, so that each one's output can be added to its input.

    Not so for stages of a pyramid, which change resolution and width.
    """
    shapes: Dict[str, Any] = {}
    return all(
        shapes.setdefault(name, parameter.shape) == parameter.shape
        for layer in layers
        for name, parameter in layer.named_parameters()
    )

"""A model made for images of one size, changed for another: its table of position embeddings is resampled once, by its own library.

Convolutions and windows of attention take any size. A table of positions has one row a patch; Transformers' models interpolate
theirs in interpolate_pos_encoding, and timm's in set_input_size. The configuration says the new size afterwards, so that the saved
model is an ordinary one of that size.
"""

from __future__ import annotations

import copy
from typing import Any, List, Tuple

import torch

from ipu_trainer.errors import UserError, first_line
from ipu_trainer.tasks.chest_xray.model.architectures import TIMM, both_sides, image_size, num_channels


def fit_to_size(model: Any, size: int, source: str) -> Tuple[Any, List[str]]:
    """(the model for images of size x size pixels, what changed). Raises UserError where it cannot read them."""
    given = image_size(model.config)
    if given not in (None, (size, size)):
        before = f"{given[0]} x {given[1]}"
        fit = _fit_timm if model.config.model_type == TIMM else _fit
        try:
            model, changed = fit(model, size, source, given)
        except UserError:
            raise
        except Exception as error:  # whatever its library raises where it cannot change the size
            reason = first_line(error)
            raise _refusal(
                source, size, given, f"its library cannot change that ({type(error).__name__}: {reason})"
            ) from error
    else:
        before, changed = "any", False
    if model.config.model_type == TIMM:
        _describe_whole_images(model.config, size)
    _check_forward(model, size, source, before)
    return model, [f"position embeddings resampled from {before} to {size} x {size} pixels"] if changed else []


def _describe_whole_images(config: Any, size: int) -> None:
    """Let the configuration of a model of timm, which is its preprocessor's too, say what training does: no crop, size x size."""
    whole = {"input_size": [num_channels(config), size, size], "crop_pct": 1.0, "crop_mode": "squash"}
    config.pretrained_cfg = {**config.pretrained_cfg, **whole}


def _fit_timm(model: Any, size: int, source: str, given: Tuple[int, int]) -> Tuple[Any, bool]:
    config, inner = model.config, model.timm_model
    changed = False
    if hasattr(inner, "set_input_size"):
        patch = getattr(getattr(inner, "patch_embed", None), "patch_size", None)
        if patch is not None and any(size % side for side in both_sides(patch)):
            raise _refusal(source, size, given, f"{size} pixels are no multiple of its patches of {patch}")
        shapes = {name: value.shape for name, value in inner.state_dict().items()}
        try:
            inner.set_input_size(img_size=(size, size))
        except (AssertionError, ValueError, RuntimeError) as error:
            raise _refusal(source, size, given, str(error)) from error
        changed = any(value.shape != shapes[name] for name, value in inner.state_dict().items() if name in shapes)
        config.model_args = {**(config.model_args or {}), "img_size": size}
    return model, changed


def _fit(model: Any, size: int, source: str, given: Tuple[int, int]) -> Tuple[Any, bool]:
    config = copy.deepcopy(model.config)
    config.image_size = size if isinstance(config.image_size, int) else [size, size]
    fitted = type(model)(config)
    state, wanted = model.state_dict(), fitted.state_dict()
    tables = [name for name, value in wanted.items() if value.is_floating_point() and state[name].shape != value.shape]
    for name in tables:
        state[name] = _resampled(model, name, size, source, given)
    patch = getattr(config, "patch_size", None)
    has_positions = any(name.rpartition(".")[2] == "position_embeddings" for name in wanted)
    if has_positions and patch is not None and any(size % side for side in both_sides(patch)):
        raise _refusal(source, size, given, f"{size} pixels are no multiple of its patches of {patch}")
    # Tables of integers (indices of relative positions) follow from the size.
    fitted.load_state_dict(
        {name: state[name] if state[name].shape == wanted[name].shape else wanted[name] for name in wanted}
    )
    return fitted, bool(tables)


def _resampled(model: Any, name: str, size: int, source: str, given: Tuple[int, int]) -> torch.Tensor:
    """The table of positions at this name, as the library interpolates it: (1, tokens, width)."""
    holder, _, leaf = name.rpartition(".")
    embeddings = model.get_submodule(holder)
    if leaf != "position_embeddings" or not hasattr(embeddings, "interpolate_pos_encoding"):
        raise _refusal(source, size, given, f"its {name} belongs to that size, and Transformers does not resample it")
    table = getattr(embeddings, leaf)
    patches = [
        [side // patch for side, patch in zip(of, both_sides(model.config.patch_size))] for of in (given, (size,) * 2)
    ]
    tokens = table.shape[1] - patches[0][0] * patches[0][1] + patches[1][0] * patches[1][1]
    with torch.no_grad():
        resampled: torch.Tensor = embeddings.interpolate_pos_encoding(
            table.new_empty(1, tokens, table.shape[2]), size, size
        )
    return resampled


def _check_forward(model: Any, size: int, source: str, before: str) -> None:
    """One black image through the model, whose errors are those of its size."""
    training = model.training
    try:
        with torch.no_grad():
            output = model.eval()(pixel_values=torch.zeros(1, num_channels(model.config), size, size))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        reason = first_line(error)
        raise UserError(
            f"{source}: its {type(model).__name__} (made for {before} pixels) cannot read images of {size} x {size} pixels: "
            f"{reason}. Prepare the data again with another --size."
        ) from error
    finally:
        model.train(training)
    if output.logits.shape != (1, model.config.num_labels):
        raise UserError(
            f"{source}: its {type(model).__name__} gives outputs of shape {tuple(output.logits.shape)} for one image, instead of "
            f"(1, {model.config.num_labels}). Give another --model."
        )


def _refusal(source: str, size: int, given: Tuple[int, int], reason: str) -> UserError:
    return UserError(
        f"{source} reads images of {given[0]} x {given[1]} pixels (image_size in its config.json), the data is prepared at "
        f"{size} x {size}: {reason}. "
        + (
            f"Prepare it again with --size {given[0]}."
            if given[0] == given[1]
            else "Give another --model: images are square."
        )
    )

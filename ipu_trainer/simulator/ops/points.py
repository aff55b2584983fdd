"""poptorch.fps and poptorch.nearest: farthest point sampling and nearest neighbours, within groups of points.

Semantics of torch_cluster's functions of the same names, with fixed sizes.
"""

from __future__ import annotations

import math
from typing import Any, List, Optional, Union

import torch

from ipu_trainer.simulator.errors import createPoptorchError
from ipu_trainer.simulator.ops.tensor_ops import require_tensor


def fps(src: torch.Tensor, ptr: List[int], ratio: float = 0.5, random_start: bool = False) -> torch.Tensor:
    """Indices of ceil(ratio * size) points per group, each the farthest from those chosen before.

    src (points, features); group g is src[ptr[g]:ptr[g + 1]]. The first point of a group, or a random one, starts.
    """
    require_tensor(src, "`fps` must take a torch.tensor input.")
    if not isinstance(ptr, list):
        raise createPoptorchError("`ptr` must be a list of integers.")
    if len(ptr) < 2:
        raise createPoptorchError("`ptr` must containt at least 2 elements.")
    if not isinstance(ratio, float):
        raise createPoptorchError(f"`ratio` must be of float type. {type(ratio)} is not supported.")
    if not isinstance(random_start, bool):
        raise createPoptorchError(f"`random_start` must be of bool type. {type(random_start)} is not supported.")
    chosen: List[torch.Tensor] = []
    for begin, end in zip(ptr, ptr[1:]):
        points = src[begin:end].reshape(end - begin, -1)
        start = torch.randint(end - begin, ()) if random_start else torch.zeros((), dtype=torch.int64)
        index = start.to(src.device)
        distance = torch.full((end - begin,), math.inf, device=src.device, dtype=src.dtype)
        for _ in range(math.ceil(ratio * (end - begin))):
            chosen.append(begin + index)
            distance = torch.minimum(distance, ((points - points[index]) ** 2).sum(-1))
            index = distance.argmax()
    return torch.stack(chosen) if chosen else torch.empty(0, dtype=torch.int64)


def nearest(
    x: torch.Tensor,
    y: torch.Tensor,
    batch_x: Optional[Union[List[int], torch.Tensor]] = None,
    batch_y: Optional[Union[List[int], torch.Tensor]] = None,
) -> torch.Tensor:
    """For each point of x the index of the nearest point of y in the same group. batch_* name each point's group."""
    for name, value in (("x", x), ("y", y)):
        require_tensor(value, f"`nearest` must take a torch.tensor `{name}` input.")
    distance = torch.cdist(x.reshape(len(x), -1), y.reshape(len(y), -1))
    group_x, group_y = _groups(batch_x, len(x)), _groups(batch_y, len(y))
    if group_x is None or group_y is None:
        raise createPoptorchError(
            "`batch_x` and `batch_y` must be torch.Tensors or lists while `batch_x` is of type "
            f"{type(batch_x)} and `batch_y` is of type {type(batch_y)}."
        )
    apart = group_x.to(x.device)[:, None] != group_y.to(y.device)[None, :]
    return distance.masked_fill(apart, math.inf).argmin(dim=1)


def _groups(batch: Any, num_points: int) -> Optional[torch.Tensor]:
    if batch is None or (isinstance(batch, list) and not batch):
        return torch.zeros(num_points, dtype=torch.int64)
    if isinstance(batch, list):
        return torch.tensor(batch)
    return batch if isinstance(batch, torch.Tensor) else None

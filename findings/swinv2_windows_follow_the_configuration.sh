#!/usr/bin/env bash
# SwinV2 gives other features for the same images and weights when config.image_size alone is changed; Swin does not.
#
# Versions: transformers 5.24.0, torch 2.13.0, Python 3.11.
#
# Expected: image_size in the configuration of a hierarchical model without absolute position embeddings says which images it
# was made for. The forward pass takes the size from the images: Swin does, and so it computes images of 64 pixels in the same
# way whether its configuration says 32 or 64. Both models accept the images in either case, without a warning.
#
# Instead: SwinV2 chooses the windows of each stage once, when it is built, from config.image_size: a stage whose grid is no
# larger than the window gets one window without shift. With larger images the grid grows and the windows stay, so a model
# that is loaded with the size of its images attends in other windows than one that is loaded as its checkpoint says.
#
# Output seen:
#   Swin    built for 32, images of 64: same parameters True, largest difference of the features 0
#   SwinV2  built for 32, images of 64: same parameters True, largest difference of the features 2.47
#
# Why it matters: feeding larger images to a SwinV2 checkpoint is common, and nothing says that image_size has to be changed with
# them. A fine-tuned model that is saved with one image_size and used with another loses accuracy without an error.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 HF_HOME="$work/home" TRANSFORMERS_VERBOSITY=error

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet transformers==5.24.0

cat > "$work/show.py" <<'PY'
import torch
from transformers import SwinConfig, SwinModel, Swinv2Config, Swinv2Model

torch.set_num_threads(1)
sizes = {"patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def difference(name, model_class, config_class):
    torch.manual_seed(0)
    built_for_32 = model_class(config_class(image_size=32, **sizes)).eval()
    built_for_64 = model_class(config_class(image_size=64, **sizes)).eval()
    weights, wanted = dict(built_for_32.named_parameters()), dict(built_for_64.named_parameters())
    same = {key: value.shape for key, value in weights.items()} == {key: value.shape for key, value in wanted.items()}
    built_for_64.load_state_dict(weights, strict=False)  # parameters alone: tables of integers follow from the size
    with torch.no_grad():
        gap = (built_for_32(images)[0] - built_for_64(images)[0]).abs().max().item()
    print(f"{name:7} built for 32, images of 64: same parameters {same}, largest difference of the features {gap:.3g}")
    return same, gap


swin = difference("Swin", SwinModel, SwinConfig)
swinv2 = difference("SwinV2", Swinv2Model, Swinv2Config)
assert swin[0] and swinv2[0]
assert swin[1] == 0
assert swinv2[1] > 0.1
PY
"$work/venv/bin/python" "$work/show.py"

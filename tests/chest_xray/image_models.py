"""Tiny checkpoints of every architecture that docs/models.md lists, with random weights, each with the preprocessor of its family."""

import json

import torch
import transformers
from safetensors.torch import load_file

VIT = {
    "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
    "patch_size": 8, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
DINO = {**VIT, "mlp_ratio": 2}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
CONVNEXT = {"image_size": 32, "num_stages": 2, "hidden_sizes": [8, 16], "depths": [2, 2]}
EFFICIENTNET = {
    "image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320, "kernel_sizes": [3, 3],
    "in_channels": [32, 16], "out_channels": [16, 24], "strides": [1, 2], "num_block_repeats": [8, 8],
    "expand_ratios": [1, 6], "depthwise_padding": [], "dropout_rate": 0.0, "drop_connect_rate": 0.0,
}  # fmt: skip
SQUARE = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
CROPPED = {
    "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 36}, "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
}  # fmt: skip
DEIT = {**CROPPED, "image_processor_type": "DeiTImageProcessor", "size": {"height": 36, "width": 36}}
SHORTEST = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": 0.875}
TWICE = {
    "image_processor_type": "EfficientNetImageProcessor", "size": {"height": 32, "width": 32}, "include_top": True,
}  # fmt: skip
# name: what Transformers' classes begin with, configuration, preprocessor.
CHECKPOINTS = {
    "vit": ("ViT", VIT, SQUARE),
    "deit": ("DeiT", VIT, DEIT),
    "beit": ("Beit", {**VIT, "use_absolute_position_embeddings": True}, SQUARE),
    "beit-relative": ("Beit", {**VIT, "use_relative_position_bias": True}, SQUARE),
    "dinov2": ("Dinov2", DINO, CROPPED),
    "dinov2-registers": ("Dinov2WithRegisters", {**DINO, "num_register_tokens": 2}, CROPPED),
    "swin": ("Swin", SWIN, SQUARE),
    "swinv2": ("Swinv2", SWIN, SQUARE),
    "convnext": ("ConvNext", CONVNEXT, SHORTEST),
    "convnextv2": ("ConvNextV2", CONVNEXT, SHORTEST),
    "resnet": (
        "ResNet",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2], "layer_type": "basic"},
        SHORTEST,
    ),
    "efficientnet": ("EfficientNet", EFFICIENTNET, TWICE),
}
HERE = [name for name, (kind, _, _) in CHECKPOINTS.items() if hasattr(transformers, f"{kind}Config")]


def randomise(model):
    """No two tensors equal: a tensor in another one's place is then seen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            drawn = torch.randn(value.shape, generator=generator) * 0.2
            is_scale = "running_var" in name or (value.dim() == 1 and name.endswith("weight"))
            value.copy_(1.0 + drawn.abs() if is_scale else drawn)
    return model.eval()


def write_checkpoint(folder, name, suffix="ForImageClassification", **changes):
    """A folder with this architecture's weights and preprocessor_config.json; returns (the folder, the model)."""
    kind, settings, processor = CHECKPOINTS[name]
    config = getattr(transformers, f"{kind}Config")(**{**settings, **changes})
    model = randomise(getattr(transformers, kind + suffix)(config))
    model.save_pretrained(folder)
    values = {
        "do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 2, "rescale_factor": 1 / 255,
        "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps({**values, **processor}))
    return folder, model


def contents(tensors):
    """{(shape, bytes): name} of floating-point tensors, whatever the release of Transformers calls them."""
    return {
        (tuple(value.shape), value.detach().contiguous().numpy().tobytes()): name
        for name, value in tensors.items()
        if value.is_floating_point()
    }


def read_weights(folder):
    """The folder's weights as they are on disk."""
    if (folder / "model.safetensors").is_file():
        return load_file(str(folder / "model.safetensors"))
    return torch.load(folder / "pytorch_model.bin")


def file_contents(folder):
    return contents(read_weights(folder))

import json
import re

import pytest

from ipu_trainer.cli import main
from ipu_trainer.config import profiles

LAYERS = {"vit": 12, "bert": 12, "roberta": 12, "gpt2_medium": 24, "gpt2": 12, "t5": 12, "bart": 12}
IPUS = {"pod4": 4, "pod16": 16, "pod64": 64}


@pytest.mark.parametrize("name", [name for name in profiles.profile_names() if name != "one_ipu"])
def test_profile_fits_its_model_and_its_pod_and_says_where_it_comes_from(name):
    profile = profiles.load_profile(name)
    family = next(prefix for prefix in sorted(LAYERS, key=len, reverse=True) if name.startswith(prefix))
    assert profiles.check(profile.config, {"num_hidden_layers": LAYERS[family]}) == []
    pod = re.search(r"pod\d+", name).group()
    assert profile.config.num_ipus == IPUS[pod]
    assert profile.about["basis"] in ("published", "derived")
    assert ("http" in profile.about["source"]) or profile.about["basis"] == "derived"
    micro_batches = profile.config.gradient_accumulation_steps * profile.config.replication_factor
    assert profile.about["global_batch"] == profile.micro_batch * micro_batches


def test_published_tutorial_profile_has_the_published_values():
    profile = profiles.load_profile("vit_base_pod4")
    config = profile.config
    assert (config.layers_per_ipu, config.gradient_accumulation_steps, profile.micro_batch) == ((3, 3, 3, 3), 128, 1)
    assert config.matmul_proportion == 0.3


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(ValueError, match="vit_base_pod4"):
        profiles.load_profile("vit_bas_pod4")


def test_a_plain_ipu_config_file_and_its_folder_are_profiles_too(tmp_path):
    config = profiles.load_profile("gpt2_pod16").config
    config.save_pretrained(tmp_path)
    assert profiles.load_profile(str(tmp_path)).config == config
    assert profiles.load_profile(str(tmp_path / "ipu_config.json")).config == config


def test_check_finds_what_would_stop_a_run():
    config = profiles.load_profile("gpt2_pod16").config.updated(
        gradient_accumulation_steps=4, replication_factor=3, embedding_serialization_factor=4
    )
    problems = profiles.check(config, {"n_layer": 11, "vocab_size": 50257})
    assert len(problems) == 4
    assert "but the model has 11" in problems[0]
    assert "Use 7 or more" in problems[1]
    assert "12 IPUs" in problems[2]
    assert "50260 tokens" in problems[3]


@pytest.mark.parametrize(
    "model_config, layers",
    [
        ({"num_hidden_layers": 12}, 12),
        ({"n_layer": 24}, 24),
        ({"is_encoder_decoder": True, "num_layers": 6, "num_decoder_layers": 6}, 12),
        ({"is_encoder_decoder": True, "encoder_layers": 6, "decoder_layers": 4, "num_hidden_layers": 6}, 10),
        ({"depths": [2, 2, 6, 2]}, 12),
        ({"model_type": "strange"}, None),
    ],
)
def test_repeated_layers_are_counted_from_the_models_config(model_config, layers):
    assert profiles.num_repeated_layers(model_config) == layers


def test_command_lists_shows_and_checks(tmp_path, capsys):
    assert main(["profiles", "list"]) == 0
    assert "vit_base_pod4" in capsys.readouterr().out
    assert main(["profiles", "show", "vit_base_pod4"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["gradient_accumulation_steps"] == 128
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 12}))
    assert main(["profiles", "check", "vit_base_pod4", "--model", str(tmp_path)]) == 0
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 11}))
    assert main(["profiles", "check", "vit_base_pod4", "--model", str(tmp_path)]) == 1
    assert "[2, 2, 2, 5]" in capsys.readouterr().out
    assert main(["profiles", "show", "nope"]) == 1

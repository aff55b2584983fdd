import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipu_trainer.config.ipu_config import CONFIG_FILE, IPUConfig, IPUConfigError

# What optimum-graphcore 0.7.1's IPUConfig() writes, apart from version stamps.
# https://github.com/huggingface/optimum-graphcore/blob/v0.7.1/optimum/graphcore/ipu_configuration.py
OPTIMUM_DEFAULTS = {
    "auto_loss_scaling": False,
    "device_iterations": 1,
    "embedding_serialization_factor": 1,
    "enable_half_partials": True,
    "executable_cache_dir": "",
    "execute_encoder_on_cpu_for_generation": False,
    "explicit_ir_inference": False,
    "gradient_accumulation_steps": 1,
    "inference_device_iterations": 1,
    "inference_embedding_serialization_factor": 1,
    "inference_ipus_per_replica": 1,
    "inference_layers_per_ipu": [-1],
    "inference_matmul_proportion": 0.2,
    "inference_parallelize_kwargs": {},
    "inference_projection_serialization_factor": 1,
    "inference_replication_factor": 1,
    "inference_serialized_embedding_splits_per_ipu": None,
    "inference_serialized_projection_splits_per_ipu": None,
    "ipus_per_replica": 1,
    "layers_per_ipu": [-1],
    "matmul_proportion": 0.2,
    "optimizer_state_offchip": False,
    "output_mode": "final",
    "parallelize_kwargs": {},
    "projection_serialization_factor": 1,
    "recompute_checkpoint_every_layer": False,
    "replicated_tensor_sharding": False,
    "replication_factor": 1,
    "seed": None,
    "serialized_embedding_splits_per_ipu": None,
    "serialized_projection_splits_per_ipu": None,
}


def test_defaults_are_those_of_optimum_graphcore():
    assert IPUConfig().to_dict() == OPTIMUM_DEFAULTS


configs = st.integers(1, 4).flatmap(
    lambda ipus: st.builds(
        IPUConfig,
        replication_factor=st.integers(1, 16),
        inference_replication_factor=st.integers(1, 4),
        gradient_accumulation_steps=st.integers(1, 512),
        device_iterations=st.integers(1, 8),
        layers_per_ipu=st.lists(st.integers(-1, 8), min_size=ipus, max_size=ipus).map(tuple),
        matmul_proportion=st.one_of(
            st.floats(0, 1), st.lists(st.floats(0, 1), min_size=ipus, max_size=ipus).map(tuple)
        ),
        enable_half_partials=st.booleans(),
        seed=st.one_of(st.none(), st.integers(0, 2**31)),
        output_mode=st.sampled_from(["all", "sum", "final", "default"]),
    )
)


@given(configs)
def test_what_was_written_is_read_back_as_the_same_value(config):
    again = IPUConfig.from_dict(json.loads(config.to_json_string()))
    assert again == config
    assert hash(again) == hash(config)


@given(configs)
def test_inference_configuration_accumulates_nothing_and_takes_the_twins(config):
    inference = config.for_inference()
    assert inference.gradient_accumulation_steps == 1
    assert inference.replication_factor == config.inference_replication_factor
    assert inference.layers_per_ipu == config.inference_layers_per_ipu
    assert inference.for_inference() == inference


def test_saved_folder_is_read_again_and_files_of_optimum_are_too(tmp_path):
    config = IPUConfig(layers_per_ipu=(3, 3, 3, 3), gradient_accumulation_steps=128)
    assert config.save_pretrained(tmp_path) == [str(tmp_path / CONFIG_FILE)]
    values = json.loads((tmp_path / CONFIG_FILE).read_text())
    values.update(optimum_version="1.6.1", transformers_version="4.29.2")
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values))
    assert IPUConfig.from_pretrained(tmp_path) == config
    assert IPUConfig.from_pretrained(tmp_path, replication_factor=4).replication_factor == 4
    assert [path.name for path in tmp_path.iterdir()] == [CONFIG_FILE]


@pytest.mark.parametrize(
    "given_layers, num_layers, resolved",
    [
        ((-1,), 12, (12,)),
        ((-1, -1), 9, (4, 5)),
        ((1, 2, -1, -1), 12, (1, 2, 4, 5)),
        ((0, 4, 4, 4), 12, (0, 4, 4, 4)),
        ((3, 3, 3, -1), 9, (3, 3, 3, 0)),
    ],
)
def test_wildcards_share_what_remains_and_the_last_takes_the_rest(given_layers, num_layers, resolved):
    assert IPUConfig(layers_per_ipu=given_layers).resolve_layers(num_layers) == resolved


@given(st.integers(1, 60), st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_resolved_layers_sum_to_the_model(num_layers, fixed):
    config = IPUConfig(layers_per_ipu=(*fixed, -1))
    if len(fixed) + 1 > 1 and sum(fixed) <= num_layers:
        assert sum(config.resolve_layers(num_layers)) == num_layers
    else:
        with pytest.raises(IPUConfigError, match="places"):
            config.resolve_layers(num_layers)


def test_an_even_split_over_ipus_per_replica_is_the_default():
    assert IPUConfig(ipus_per_replica=4).resolve_layers(12) == (3, 3, 3, 3)


def test_too_few_layers_name_the_split_that_works():
    with pytest.raises(IPUConfigError, match=r"\[6, 5\] places 11 layers, but the model has 12. Use \[6, 6\], or -1"):
        IPUConfig(layers_per_ipu=(6, 5)).resolve_layers(12)


def test_overrides_from_a_string_keep_what_was_derived_in_step():
    config = IPUConfig(layers_per_ipu=(3, 3, 3, 3), matmul_proportion=0.3)
    changed = config.updated_from_string("replication_factor=2,layers_per_ipu=[1 -1],enable_half_partials=false,seed=3")
    assert (changed.replication_factor, changed.layers_per_ipu, changed.ipus_per_replica) == (2, (1, -1), 2)
    assert changed.inference_layers_per_ipu == (1, -1)
    assert changed.enable_half_partials is False
    assert changed.seed == 3
    assert config.replication_factor == 1


def test_a_twin_that_was_set_apart_stays_apart():
    config = IPUConfig(layers_per_ipu=(3, 3, 3, 3), inference_layers_per_ipu=(6, 6))
    assert config.updated(gradient_accumulation_steps=8).inference_layers_per_ipu == (6, 6)
    assert config.inference_ipus_per_replica == 2


@pytest.mark.parametrize(
    "values, message",
    [
        ({"replication_factor": 0}, "replication_factor 0 must be a whole number of at least 1"),
        ({"gradient_accumulation_steps": True}, "gradient_accumulation_steps True"),
        ({"layers_per_ipu": (3, -2)}, "holds -2"),
        ({"layers_per_ipu": "3333"}, "must be a list"),
        ({"layers_per_ipu": (3, 3), "ipus_per_replica": 4}, "2 entries, but ipus_per_replica is 4"),
        ({"matmul_proportion": 2.0}, "from 0 to 1"),
        ({"layers_per_ipu": (3, 3), "matmul_proportion": (0.1, 0.2, 0.3)}, "Give 2 entries"),
        ({"output_mode": "finale"}, "Use 'final'"),
        ({"enable_half_partials": 1}, "true or false"),
        ({"layers_per_ipu": (1,) * 4, "serialized_embedding_splits_per_ipu": (3, 0, 2, 0)}, "consecutive"),
        (
            {
                "layers_per_ipu": (1, 1),
                "embedding_serialization_factor": 2,
                "serialized_embedding_splits_per_ipu": (1, 1),
            },
            "both given",
        ),
        ({"execute_encoder_on_cpu_for_generation": True}, "Set it to false"),
    ],
)
def test_a_wrong_value_is_refused_with_the_rule(values, message):
    with pytest.raises(IPUConfigError, match=message):
        IPUConfig(**values)


def test_an_unknown_field_names_the_nearest():
    with pytest.raises(IPUConfigError, match="Did you mean 'replication_factor'"):
        IPUConfig.from_dict({"replication_faktor": 2})


def test_batch_size_factor_is_that_of_optimum():
    config = IPUConfig(
        replication_factor=2, gradient_accumulation_steps=8, device_iterations=4, inference_device_iterations=3
    )
    assert config.batch_size_factor() == 64
    assert config.batch_size_factor(for_inference=True) == 3


def test_pushing_to_the_hub_uploads_the_file(monkeypatch):
    calls = []

    class Hub:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, private=None, exist_ok=False):
            calls.append(("create", repo_id, exist_ok))
            return type("Repository", (), {"repo_id": "someone/" + repo_id})

        def upload_file(self, path_or_fileobj, path_in_repo, repo_id, commit_message):
            calls.append((repo_id, path_in_repo, json.loads(path_or_fileobj)["replication_factor"]))
            return "address"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert IPUConfig(replication_factor=4).push_to_hub("vit") == "address"
    assert calls == [("create", "vit", True), ("someone/vit", CONFIG_FILE, 4)]


# As shipped by optimum-graphcore 0.1 to 0.5 (examples/question-answering, examples/audio-classification), shortened.
OLDER = {
    "ipus_per_replica": 4, "layers_per_ipu": [0, 4, 4, 4], "replication_factor": 2, "gradient_accumulation_steps": 16,
    "embedding_serialization_factor": 0, "recompute_checkpoint_every_layer": True, "enable_half_partials": True,
    "enable_half_first_order_momentum": False, "executable_cache_dir": None, "matmul_proportion": [0.25], "random_seed": 42,
    "profile_dir": "", "use_popdist": False, "compile_only": False, "synthetic_data": False, "decompose_grad_sum": False,
    "sharded_execution_for_inference": False, "dataloader_workers": 64, "async_dataloader": True, "optimizer": "AdamW",
    "weight_decay": 0.01, "layer_norm_eps": 0.001, "transformers_version": "4.18.0",
}  # fmt: skip


def written(folder, values):
    (folder / "ipu_config.json").write_text(json.dumps(values))
    return folder


def test_a_file_of_an_earlier_release_is_read_by_todays_names(tmp_path, caplog):
    config = IPUConfig.from_pretrained(written(tmp_path, OLDER))
    expected = IPUConfig(
        ipus_per_replica=4, layers_per_ipu=(0, 4, 4, 4), replication_factor=2, gradient_accumulation_steps=16,
        recompute_checkpoint_every_layer=True, matmul_proportion=0.25, seed=42,
    )  # fmt: skip
    assert config == expected
    for name in ("dataloader_workers=64 (the training (dataloader_num_workers))", "async_dataloader", "layer_norm_eps"):
        assert name in caplog.text  # what no release read is not silently left out
    assert IPUConfig.from_dict({"layers_per_ipu": 6, "ipus_per_replica": 1}).layers_per_ipu == (6,)  # 0.1's form


def test_a_count_for_each_pod_size_has_to_be_chosen(tmp_path):
    sizes = {"pod4": 1, "pod16": 4, "default": 1}
    folder = written(tmp_path, {**OLDER, "replication_factor": sizes, "inference_replication_factor": sizes})
    with pytest.raises(
        IPUConfigError, match=r"replication_factor and inference_.*pod4: 1, pod16: 4.*pod='pod4'"
    ) as error:
        IPUConfig.from_pretrained(folder)
    assert "ipu_config.json" in str(error.value)
    config = IPUConfig.from_pretrained(folder, pod="pod16")
    assert (config.replication_factor, config.inference_replication_factor) == (4, 4)
    assert IPUConfig.from_pretrained(folder, pod="default", device_iterations=2).device_iterations == 2
    with pytest.raises(IPUConfigError, match="pod='pod64': replication_factor has values for pod4: 1, pod16: 4"):
        IPUConfig.from_pretrained(folder, pod="pod64")
    config.save_pretrained(folder)  # as the message says
    assert IPUConfig.from_pretrained(folder) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"profile_dir": "profile"}, "POPLAR_ENGINE_OPTIONS"),
        ({"compile_only": True}, "--compile_only"),
        ({"synthetic_data": True}, "random samples"),
        ({"decompose_grad_sum": True}, "remove it"),
        ({"random_seed": 1, "seed": 2}, "keep seed"),
        ({"matmul_proportion": [0.1, 0.2]}, "4 entries, or one number for all"),
    ],
)
def test_what_an_earlier_release_set_and_this_one_cannot_is_refused(values, message):
    with pytest.raises(IPUConfigError, match=message):
        IPUConfig.from_dict({**OLDER, **({"random_seed": 42} if "random_seed" not in values else {}), **values})

"""What must hold of every prediction: laws over random valid jobs, and measured workloads."""

import dataclasses

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from ipu_trainer.config.ipu_config import IPUConfig
from ipu_trainer.machine.hardware import GC200
from ipu_trainer.planner.constants import TASKS
from ipu_trainer.planner.job import Job
from ipu_trainer.planner.memory import predict_memory
from ipu_trainer.planner.time import predict_time
from ipu_trainer.planner.workload import measure

BANDS = ["fits", "borderline", "does not fit"]
JOBS = st.builds(
    Job,
    layers_per_ipu=st.sampled_from([(3, 3, 3, 3), (0, 4, 4, 4), (6, 6), (12,), (0, 2, 2, 2, 2, 2, 2, 0), (12, 0)]),
    micro_batch=st.integers(1, 64),
    accumulation=st.integers(1, 4096),
    replicas=st.sampled_from([1, 2, 4, 8, 16, 64]),
    device_iterations=st.integers(1, 8),
    recompute=st.booleans(),
    sharded_state=st.booleans(),
    state_off_chip=st.booleans(),
    matmul_proportion=st.tuples(st.floats(0.01, 1)),
    optimizer=st.sampled_from(["sgd", "adam", "adamw", "lamb"]),
    head_fraction=st.floats(0.01, 1),
    head_serialization=st.integers(1, 8),
    own_loop=st.booleans(),
    float8_stash=st.booleans(),
    checkpoint_each_layer=st.booleans(),
)
WORKLOADS = st.sampled_from(["vit", "gpt2"])


@settings(max_examples=80, deadline=None, derandomize=True)
@given(job=JOBS, more=st.floats(1, 8), name=WORKLOADS)
def test_more_memory_never_makes_a_configuration_stop_fitting(vit, gpt2, job, more, name):
    workload = {"vit": vit, "gpt2": gpt2}[name]
    small = predict_memory(workload, job)
    large = predict_memory(workload, job, sram_bytes=int(small.sram_bytes * more))
    assert BANDS.index(large.band) <= BANDS.index(small.band)
    assert large.share <= small.share * (1 + 1e-9)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(job=JOBS, name=WORKLOADS)
def test_predictions_are_finite_and_positive(vit, gpt2, job, name):
    workload = {"vit": vit, "gpt2": gpt2}[name]
    memory, time = predict_memory(workload, job), predict_time(workload, job, GC200)
    assert all(0 <= size < float("inf") for ipu in memory.ipus for size in ipu.values()) and memory.share > 0
    low, high = time.interval
    assert 0 < low < time.throughput < high < float("inf")
    terms = [getattr(time, item.name) for item in dataclasses.fields(time) if item.name.endswith("_s")]
    assert min(terms) >= 0 and sum(terms) == pytest.approx(time.step_s)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(job=JOBS, name=WORKLOADS)
def test_more_replicas_never_lower_throughput_at_the_same_work_for_each(vit, gpt2, job, name):
    workload = {"vit": vit, "gpt2": gpt2}[name]
    double = dataclasses.replace(job, replicas=2 * job.replicas)
    assert predict_time(workload, double, GC200).throughput >= predict_time(workload, job, GC200).throughput


@settings(max_examples=80, deadline=None, derandomize=True)
@given(job=JOBS, name=WORKLOADS)
def test_a_larger_micro_batch_takes_more_memory_and_more_time(vit, gpt2, job, name):
    workload = {"vit": vit, "gpt2": gpt2}[name]
    more = dataclasses.replace(job, micro_batch=job.micro_batch + 1)
    assert predict_memory(workload, more).share >= predict_memory(workload, job).share
    assert predict_time(workload, more, GC200).step_s > predict_time(workload, job, GC200).step_s


def test_recomputation_from_each_layer_holds_less_at_work_and_stashes_more(gpt2):
    each = Job((3, 3, 3, 3), 4, 7)
    stage = dataclasses.replace(each, checkpoint_each_layer=False)
    none = dataclasses.replace(each, recompute=False)
    for ipu in range(3):
        a, b, c = (predict_memory(gpt2, job).ipus[ipu] for job in (each, stage, none))
        assert a["recomputation"] < b["recomputation"] and a["stash"] == 3 * b["stash"] < c["stash"]
    config = IPUConfig(layers_per_ipu=(3, 3, 3, 3), gradient_accumulation_steps=7)
    assert Job.from_config(config, gpt2, 4).checkpoint_each_layer is False
    assert Job.from_config(config.updated(recompute_checkpoint_every_layer=True), gpt2, 4).checkpoint_each_layer


def test_sharding_and_streaming_memory_take_optimizer_state_off_an_ipu(vit):
    on_chip = Job((3, 3, 3, 3), 1, 7, replicas=4)
    sharded = dataclasses.replace(on_chip, sharded_state=True)
    off_chip = dataclasses.replace(on_chip, state_off_chip=True)
    state = [predict_memory(vit, job).ipus[1]["optimizer state"] for job in (on_chip, sharded, off_chip)]
    assert state[0] == 6 * sum(part.parameters for part in on_chip.placed(vit)[1])
    assert state[1] == state[0] / 4 and state[2] == 0
    assert predict_time(vit, off_chip, GC200).state_s > 0 == predict_time(vit, on_chip, GC200).state_s


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
AUDIO = {"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
         "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 16}  # fmt: skip
BUILT = {
    "ViT": (transformers.ViTConfig(image_size=32, patch_size=8, **SMALL), "image-classification"),
    "BERT": (transformers.BertConfig(vocab_size=100, **SMALL), "masked-lm"),
    "GPT-2": (transformers.GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4), "causal-lm"),
    "HuBERT": (transformers.HubertConfig(vocab_size=32, **SMALL, **AUDIO), "audio-classification"),
    "T5": (
        transformers.T5Config(vocab_size=100, d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4),
        "seq2seq-lm",
    ),
}


@pytest.mark.parametrize("name", BUILT)
def test_parameters_are_those_of_the_model_built_with_values(name):
    config, task = BUILT[name]
    model = getattr(transformers, TASKS[task]).from_config(config)
    length = {"HuBERT": 2000, "ViT": None}.get(name, 16)
    assert measure(config, task, length).parameters == sum(p.numel() for p in model.parameters())
    assert torch.is_tensor(next(model.parameters()))


def test_dropout_masks_are_told_from_what_must_be_kept():
    with_dropout = measure(transformers.BertConfig(), "masked-lm", 64).layers[0]
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    without = measure(transformers.BertConfig(**none), "masked-lm", 64).layers[0]
    assert without.mask_bytes == 0
    # Two of the hidden size behind the products, and one of the attention probabilities.
    assert with_dropout.mask_bytes == 2 * (2 * 64 * 768 + 12 * 64 * 64)
    assert with_dropout.flops == without.flops == 2 * 64 * 768 * 768 * 12 + 4 * 64 * 64 * 768

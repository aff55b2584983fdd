"""Searches with real Ray, in one small cluster on this machine: as transformers' own Trainer's, on host and simulated IPUs."""

import sys

import pytest
import torch
from accelerate.state import GradientState
from tiny_models import vit
from transformers import Trainer

from ipu_trainer import IPUConfig, IPUTrainer, IPUTrainingArguments
from ipu_trainer.compat import transformers_versions as compat

ray = pytest.importorskip("ray", reason="Ray Tune is for Python 3.9 and later: pip install 'ray[tune]'")
tune = pytest.importorskip("ray.tune")

PIXELS = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
SAMPLES = [{"pixel_values": pixels, "labels": index % 2} for index, pixels in enumerate(PIXELS)]


@pytest.fixture(scope="module")
def cluster():
    for module in ("tiny_models", __name__):  # the processes of trials do not find modules of tests
        ray.cloudpickle.register_pickle_by_value(sys.modules[module])
    ray.shutdown()  # one that another test left
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    yield
    ray.shutdown()


def of_trial(trial):
    return vit(layers=2 if trial is None else trial.get("layers", 2))


def trainer_of(folder, backend="host", kind=IPUTrainer, model_init=of_trial, **changes):
    values = {
        "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 4, "report_to": [], "disable_tqdm": True,
        "save_strategy": "no", "use_cpu": True, "dataloader_pin_memory": False, "learning_rate": 1e-5,
        "gradient_accumulation_steps": 2, "backend": backend,
    }  # fmt: skip
    args = IPUTrainingArguments(**compat.training_defaults(**{**values, **changes}))
    named = {} if kind is Trainer else {"ipu_config": IPUConfig()}
    return kind(model_init=model_init, args=args, train_dataset=SAMPLES, eval_dataset=SAMPLES, **named)


# One process for all trials of a search: transformers is imported once.
QUICK = {"verbose": 0, "reuse_actors": True}
RATES = tune.grid_search([1e-5, 1e-2, 3e-2])


@pytest.mark.slow
def test_three_trials_are_those_of_trainer_on_host_and_simulated(cluster, tmp_path):
    """The host's objectives are stock Trainer's to the last bit. Layers are the model's: model_init(trial) reads them."""
    objectives = {}
    GradientState._reset_state()  # stock Trainer does not pickle where any training ran before
    for name, kind, backend in (
        ("stock", Trainer, "host"),
        ("host", IPUTrainer, "host"),
        ("simulated", IPUTrainer, "simulated"),
    ):
        trainer = trainer_of(tmp_path / name, backend, kind)
        if kind is IPUTrainer:
            trainer.train()  # as a user who looked at the defaults first
        best = trainer.hyperparameter_search(
            lambda _: {"learning_rate": RATES, "layers": 1}, n_trials=1, direction="minimize", backend="ray",
            storage_path=str(tmp_path / "ray"), **QUICK,
        )  # fmt: skip
        table = best.run_summary.dataframe().sort_values("config/learning_rate")
        objectives[name] = list(table["objective"])
        assert len(best.run_summary.trials) == 3 and best.objective == min(objectives[name])
        assert best.hyperparameters["learning_rate"] in (1e-2, 3e-2) and best.hyperparameters["layers"] == 1
        if kind is IPUTrainer:
            assert trainer.args.learning_rate == 1e-5 and trainer.hp_search_backend is None
            assert trainer.evaluate()["eval_loss"] > 0  # the model is there again
    assert objectives["host"] == objectives["stock"]
    assert objectives["simulated"] == pytest.approx(objectives["host"], abs=1e-5)


@pytest.mark.slow
def test_the_geometry_is_searched_at_a_fixed_global_batch(cluster, tmp_path):
    def space(_):
        return {"micro_batch": tune.grid_search([1, 2, 4]), "replication_factor": tune.choice([1, 2])}

    class Watched(IPUTrainer):
        def evaluate(self, *positional, **named):
            geometry = self.batch_geometry
            found = {"eval_micro_batch": geometry.micro_batch, "eval_global_batch": geometry.global_batch}
            return {**super().evaluate(*positional, **named), **found}

    trainer = trainer_of(tmp_path, "simulated", Watched)
    best = trainer.hyperparameter_search(
        space,
        lambda metrics: metrics["eval_loss"],
        n_trials=1,
        backend="ray",
        storage_path=str(tmp_path / "ray"),
        **QUICK,
    )
    table = best.run_summary.dataframe()
    assert sorted(table["eval_micro_batch"]) == [1, 2, 4] and set(table["eval_global_batch"]) == {8}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"study_name": "mine"}, "study_name= is for backend='optuna'. With ray, name= and storage_path="),
        ({"pruner": None}, "pruner= is for backend='optuna'. With ray, scheduler="),
        ({"timeout": 3}, "time_budget_s"),
        ({"is_feasible": lambda config, micro_batch: None}, "is_feasible= is for backend='optuna'"),
        ({"num_trials": 3}, "num_trials: no option of ray.tune.run"),
        ({"direction": ["minimize", "maximize"], "compute_objective": len}, "2 directions are for backend='optuna'"),
        ({"hp_space": lambda _: {"learning_rat": 1}}, "Did you mean 'learning_rate'"),
        ({"hp_space": lambda _: {"micro_batch": tune.choice([2, 3])}}, "micro-batch 3 x 1 replicas.*Ray cannot skip"),
        ({"hp_space": lambda _: {"micro_batch": tune.randint(1, 4)}}, "micro_batch must be ray.tune.choice"),
        ({"hp_space": lambda _: {"micro_batch": 2, "gradient_accumulation_steps": 4}}, "which set it"),
    ],
)
def test_what_ray_cannot_search_is_refused_before_work(tmp_path, changes, message):
    named = {"hp_space": lambda _: {"learning_rate": RATES}, "direction": "minimize", **changes}
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path).hyperparameter_search(n_trials=1, backend="ray", **named)
    assert not ray.is_initialized() or not (tmp_path / "ray").exists()


def test_a_parameter_of_the_model_is_sent_to_model_init(tmp_path):
    with pytest.raises(ValueError, match=r"model_init\(trial\)"):
        trainer_of(tmp_path, model_init=lambda: vit()).hyperparameter_search(
            lambda _: {"layers": tune.choice([1, 2])}, n_trials=1, backend="ray"
        )

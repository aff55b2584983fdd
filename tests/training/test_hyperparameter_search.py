import multiprocessing
import time

import pytest
import torch
from transformers import TrainerCallback, ViTConfig, ViTForImageClassification
from transformers.trainer_utils import HPSearchBackend

from ipu_trainer import IPUConfig, IPUTrainer, IPUTrainingArguments
from ipu_trainer.compat import transformers_versions as compat
from ipu_trainer.errors import UserError
from ipu_trainer.training.hyperparameter_search.optuna_search import open_storage

optuna = pytest.importorskip("optuna")
PIXELS = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
SAMPLES = [{"pixel_values": pixels, "labels": index % 2} for index, pixels in enumerate(PIXELS)]


def vit():
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16,
                  patch_size=8, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    )  # fmt: skip


def searcher(folder, config=None, model_init=vit, **changes):
    values = {
        "output_dir": str(folder), "max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-5,
        "report_to": [], "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "dataloader_pin_memory": False,
        "backend": "host",
    }  # fmt: skip
    args = IPUTrainingArguments(**compat.training_defaults(**{**values, **changes}))
    model = None if model_init else vit()
    named = {"train_dataset": SAMPLES, "eval_dataset": SAMPLES, "ipu_config": config}
    return IPUTrainer(model, args, model_init=model_init, **named)


def rates(trial):
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True)}


def test_twelve_trials_find_a_better_objective_than_the_default(tmp_path):
    trainer = searcher(tmp_path)
    trainer.train()
    default = trainer.evaluate()["eval_loss"]
    best = trainer.hyperparameter_search(rates, n_trials=12)
    assert best.objective < default
    assert trainer.args.learning_rate == 1e-5


def start(search, *arguments):
    """A process of its own that has imported torch already."""
    process = multiprocessing.get_context("fork").Process(target=search, args=arguments)
    process.start()
    return process


def search_slowly(folder, storage):
    def slow():
        time.sleep(0.2)
        return vit()

    searcher(folder, model_init=slow).hyperparameter_search(rates, n_trials=50, study_name="s", storage=storage)


@pytest.mark.parametrize("suffix", ["db", "journal"])
def test_a_study_resumes_after_a_kill_without_repeating_finished_trials(tmp_path, suffix):
    storage = str(tmp_path / f"study.{suffix}")
    child = start(search_slowly, tmp_path / "run", storage)
    from ipu_trainer.training.hyperparameter_search.optuna_search import open_storage

    def trials():
        try:
            return optuna.load_study(study_name="s", storage=open_storage(storage)).trials
        except Exception:  # not there yet
            return []

    end = time.time() + 50
    while time.time() < end and child.is_alive():
        if sum(item.state.name == "COMPLETE" for item in trials()) >= 2 and trials()[-1].state.name == "RUNNING":
            break
        time.sleep(0.05)
    time.sleep(0.1)  # in its slow(): a lock of the journal that it held would be waited for
    child.kill()
    child.join()
    before = {item.number: item.params for item in trials() if item.state.name == "COMPLETE"}
    assert len(before) >= 2
    total = len(before) + 2
    searcher(tmp_path / "run").hyperparameter_search(rates, n_trials=total, study_name="s", storage=storage)
    after = {item.number: item.params for item in trials() if item.state.name == "COMPLETE"}
    assert len(after) == total and all(after[number] == params for number, params in before.items())
    assert len({params["learning_rate"] for params in after.values()}) == total
    assert not any(item.state.name == "RUNNING" for item in trials())


def test_a_trial_out_of_memory_fails_alone(tmp_path):
    calls = []

    def sometimes():
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("CUDA out of memory")
        return vit()

    study = {"study_name": "s", "storage": str(tmp_path / "s.db")}
    searcher(tmp_path, model_init=sometimes).hyperparameter_search(rates, n_trials=3, **study)
    states = [
        item.state.name for item in optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/s.db").trials
    ]
    assert sorted(states) == ["COMPLETE", "COMPLETE", "FAIL"]


def test_geometry_is_searched_at_a_fixed_global_batch_and_what_cannot_be_is_skipped(tmp_path):
    seen = []

    def space(trial):
        return {"micro_batch": trial.suggest_categorical("micro_batch", [1, 2, 3, 8])}

    trainer = searcher(tmp_path)

    def objective(metrics):
        seen.append((trainer.args.per_device_train_batch_size, trainer.batch_geometry.global_batch))
        return metrics["eval_loss"]

    grid = optuna.samplers.GridSampler({"micro_batch": [1, 2, 3, 8]})
    feasible = lambda config, micro_batch: "does not fit" if micro_batch == 8 else None  # noqa: E731
    trainer.hyperparameter_search(space, objective, 4, "minimize", sampler=grid, is_feasible=feasible)
    assert sorted(seen) == [(1, 8), (2, 8)]


def test_several_directions_give_the_pareto_front(tmp_path):
    best = searcher(tmp_path).hyperparameter_search(
        rates, lambda metrics: [metrics["eval_loss"], -metrics["eval_loss"]], 3, ["minimize", "minimize"]
    )
    assert len(best) == 3


def test_simulated_ipus_search_replication(tmp_path):
    def space(trial):
        return {"replication_factor": trial.suggest_categorical("replication_factor", [1, 2])}

    trainer = searcher(tmp_path, IPUConfig(gradient_accumulation_steps=2), backend="simulated", max_steps=1,
                       per_device_train_batch_size=2)  # fmt: skip
    best = trainer.hyperparameter_search(
        space, n_trials=2, sampler=optuna.samplers.GridSampler({"replication_factor": [1, 2]})
    )
    assert best.objective > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_trials": 0}, "n_trials=0"),
        ({"direction": ["minimize", "maximize"]}, "2 directions for one objective"),
        ({"direction": ["minimize"] * 2, "compute_objective": lambda metrics: 1.0}, "2 directions for 1 objective"),
        ({"direction": "up"}, "direction='up'"),
        ({"backend": "grid"}, "backend='grid'"),
        ({"hp_space": lambda trial: {"learning_rat": 1}}, "'learning_rat'.* Did you mean 'learning_rate'"),
        ({"hp_space": lambda trial: {"micro_batches": 1}}, "Did you mean 'micro_batch'"),
        ({"hp_space": lambda trial: {"world_size": 1}}, "world_size"),  # computed from others
        ({"hp_space": lambda trial: {"num_hidden_layers": 1}}, r"What the model is made of belongs in model_init"),
        ({"resources_per_trial": {"cpu": 1}}, "resources_per_trial: no option of optuna's"),
        ({"compute_objective": lambda metrics: metrics["eval_accuracy"]}, "no direction= .* direction='maximize'"),
        ({"compute_objective": lambda metrics: -metrics["eval_loss"]}, "no direction= .*compute_objective="),
        ({"storage": "study.txt"}, "study.txt"),
    ],
)
def test_what_cannot_be_searched_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        searcher(tmp_path).hyperparameter_search(**{"hp_space": rates, "n_trials": 1, **changes})


def accuracy(predictions):
    return {"accuracy": float((predictions.predictions.argmax(-1) == predictions.label_ids).mean())}


def test_without_a_direction_the_loss_alone_is_searched(tmp_path):
    """The sum of metrics, accuracy among them, was minimized: the worst trial was called the best."""
    trainer = searcher(tmp_path / "metrics")
    trainer.compute_metrics = accuracy
    with pytest.raises(ValueError, match="no direction= .*the sum of what compute_metrics= returns"):
        trainer.hyperparameter_search(rates, n_trials=1)
    assert not (tmp_path / "metrics").exists() or not list((tmp_path / "metrics").glob("run*"))
    best = trainer.hyperparameter_search(rates, lambda metrics: metrics["eval_loss"], n_trials=1)
    assert 0 < best.objective < 2
    assert trainer.hyperparameter_search(rates, n_trials=1, direction="maximize").objective <= 1.0


def test_an_evaluation_of_ones_own_without_a_loss_needs_a_direction(tmp_path):
    class Own(IPUTrainer):
        def evaluate(self, *positional, **named):
            return {"eval_loss": 1.0, "eval_auroc": 0.5}

    trainer = searcher(tmp_path)
    trainer.__class__ = Own
    with pytest.raises(ValueError, match="no direction="):
        trainer.hyperparameter_search(rates, n_trials=1)


def test_what_hp_space_draws_for_the_model_is_read_in_model_init(tmp_path):
    made = []

    def of_trial(trial):
        made.append(None if trial is None else trial.params["layers"])
        return vit()

    def space(trial):
        return {**rates(trial), "layers": trial.suggest_int("layers", 1, 3)}

    best = searcher(tmp_path, model_init=of_trial).hyperparameter_search(space, n_trials=2)
    assert made[0] is None and len(made) == 3 and best.hyperparameters["layers"] in made[1:]


def search_seven(folder, storage):
    assert searcher(folder).hyperparameter_search(rates, n_trials=7, study_name="s", storage=storage).objective > 0


def test_a_name_of_another_release_in_hp_space_is_searched(tmp_path):
    seen = []

    def of_trial(trial):
        return vit()

    trainer = searcher(tmp_path, model_init=of_trial)

    class Note(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            seen.append((getattr(args, "warmup_ratio", None), args.warmup_steps))

    trainer.add_callback(Note())
    trainer.hyperparameter_search(lambda trial: {"warmup_ratio": 0.5}, n_trials=1, direction="minimize")
    assert 0.5 in seen[-1]


def test_two_processes_on_one_study_make_its_trials_and_no_more(tmp_path):
    """Each once made all that were missing when it began, and took the other's newest trial for a dead one."""
    from ipu_trainer.training.hyperparameter_search.optuna_search import open_storage

    storage = str(tmp_path / "study.db")  # both make its tables
    workers = [start(search_seven, tmp_path / "run", storage) for _ in range(2)]
    for worker in workers:
        worker.join(timeout=120)
        assert worker.exitcode == 0
    trials = optuna.load_study(study_name="s", storage=open_storage(storage)).trials
    states = [item.state.name for item in trials]
    assert states.count("COMPLETE") == 7 and set(states) <= {"COMPLETE", "FAIL"}
    assert len({item.params["learning_rate"] for item in trials if item.params}) == 7  # each draws its own
    assert all("error" not in item.user_attrs for item in trials)


@pytest.mark.parametrize("said", [0, 1])
def test_a_trial_that_another_process_has_just_begun_is_left_alone(tmp_path, monkeypatch, said):
    """It has not said yet, for some milliseconds, which process it is of, or has said half of it."""
    from ipu_trainer.training.hyperparameter_search.optuna_search import _TrialRunner

    storage = f"sqlite:///{tmp_path}/s.db"
    study = optuna.create_study(study_name="s", storage=storage)
    begun = study.ask()
    attributes = []

    class Half:
        def set_user_attr(self, name, value):
            attributes.append(name)
            if len(attributes) <= said:
                begun.set_user_attr(name, value)
            else:
                raise KeyboardInterrupt  # the moment at which the other process looks

    with pytest.raises(KeyboardInterrupt):
        _TrialRunner.run(type("Of", (), {"trainer": None})(), Half())
    searcher(tmp_path).hyperparameter_search(rates, n_trials=3, study_name="s", storage=storage)
    states = [item.state.name for item in study.trials]
    assert states == ["RUNNING", "COMPLETE", "COMPLETE"] and begun.number == 0


def test_a_trial_beyond_the_total_is_given_up_before_work(tmp_path, monkeypatch):
    """Two processes may begin the last one at the same moment: the larger number has nothing to do."""
    from ipu_trainer.training.hyperparameter_search.optuna_search import _TrialRunner

    monkeypatch.setattr(_TrialRunner, "stop_after_last", lambda *_: None)
    storage, made = f"sqlite:///{tmp_path}/s.db", []
    study = optuna.create_study(study_name="s", storage=storage)
    study.ask()
    trainer = searcher(tmp_path, model_init=lambda: (made.append(1), vit())[1])
    trainer.hyperparameter_search(rates, n_trials=2, study_name="s", storage=storage)
    assert [item.state.name for item in study.trials] == ["RUNNING", "COMPLETE", "FAIL"]
    assert len(made) == 2 and "error" not in study.trials[2].user_attrs  # the trainer's and one trial's


def test_a_search_needs_model_init(tmp_path):
    with pytest.raises(ValueError, match="model_init"):
        searcher(tmp_path, model_init=None).hyperparameter_search(rates)


@pytest.mark.skipif("sigopt" in [item.value for item in HPSearchBackend], reason="passed through")
def test_sigopt_is_called_what_it_is(tmp_path):
    with pytest.raises(ValueError, match="dead service.*optuna"):
        searcher(tmp_path).hyperparameter_search(rates, backend="sigopt")


def test_a_damaged_study_is_named(tmp_path):
    database = tmp_path / "study.db"
    optuna.create_study(study_name="s", storage=f"sqlite:///{database}")
    assert open_storage(database) == f"sqlite:///{database}"
    content = database.read_bytes()
    for damage in (b"null", content[: len(content) // 2], content[:4096] + bytes(4096) + content[8192:]):
        database.write_bytes(damage)
        with pytest.raises(UserError, match=r"the study in .*study.db is damaged \("):
            open_storage(database)
    journal = tmp_path / "study.journal"
    journal.write_text('{"op_code": 0, "worker_id": "w"}\n{"op_code": null\n{}\n')
    with pytest.raises(UserError, match=r"study.journal is damaged"):
        open_storage(journal)

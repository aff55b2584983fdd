"""Programs that say `import poptorch`, in processes of their own: installing lasts for the process."""

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def run(tmp_path, program, command=(), **environment):
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(program))
    return subprocess.run(
        [sys.executable, *command, str(script)],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, **environment},
        cwd=tmp_path,
    )


SIMULATE = ("-m", "ipu_trainer.cli", "simulate")

TRAIN = """
    import importlib.metadata
    import sys
    import popart
    import poptorch
    import torch
    from poptorch import optim
    from poptorch._impl import rewrapModelIfNecessary, unwrapModelIfNecessary
    from poptorch._poplar_executor import PoplarExecutor
    from poptorch.poptorch_core import Error

    class Data(torch.utils.data.Dataset):
        def __len__(self): return 8
        def __getitem__(self, i): return torch.full((2,), float(i))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = poptorch.BeginBlock(torch.nn.Linear(2, 2), "layer", ipu_id=0)
            self.head = poptorch.BeginBlock(torch.nn.Linear(2, 2), "head", ipu_id=1)
        def forward(self, x):
            return poptorch.identity_loss(self.head(self.layer(x)), "mean")

    if __name__ == "__main__":
        assert importlib.metadata.version("poptorch") == "3.4.0", importlib.metadata.version("poptorch")
        opts = poptorch.Options()
        opts.Training.gradientAccumulation(4)
        opts._Popart.set("accumulateOuterFragmentSettings.schedule",
                         int(popart.AccumulateOuterFragmentSchedule.OverlapMemoryOptimized))
        model = Model()
        executor = poptorch.trainingModel(model, opts, optim.SGD(model.parameters(), lr=0.1))
        assert isinstance(executor, PoplarExecutor)
        loader = poptorch.DataLoader(opts, Data(), mode=poptorch.DataLoaderMode.Async)
        print([float(executor(x)) for x in loader] != [], sys.argv[1:])
        unwrapModelIfNecessary(model)
        assert type(model).__name__ == "Model"
        rewrapModelIfNecessary(model)
        assert type(model).__name__ == "PoptorchModel"
"""


def test_a_program_for_the_sdk_runs_and_its_loading_processes_too(tmp_path):
    done = run(tmp_path, TRAIN, SIMULATE)
    assert done.returncode == 0 and done.stdout.strip() == "True []", done.stdout + done.stderr


def test_simulate_writes_a_trace_and_passes_arguments_on(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(TRAIN))
    command = [sys.executable, *SIMULATE, "--trace", str(tmp_path / "trace"), str(script), "--epochs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0 and done.stdout.strip() == "True ['--epochs', '2']", done.stderr
    names = {"timeline.txt", "timeline.svg", "trace.json", "memory.txt", "stages.json"}
    assert {path.name for path in (tmp_path / "trace" / "training-1").iterdir()} == names


def test_the_example_learns_in_a_pipeline_of_four(tmp_path):
    script = Path(__file__).resolve().parents[2] / "scripts" / "simulate_pipeline.py"
    command = [sys.executable, *SIMULATE, "--trace", str(tmp_path), str(script), "--steps", "25"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    losses = [float(line.split()[-1]) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and losses[-1] < 0.5 * losses[0], done.stderr
    rows = [
        line for line in (tmp_path / "training-1" / "timeline.txt").read_text().splitlines() if line.startswith("IPU")
    ]
    assert [row.split()[1] for row in rows] == ["0", "1", "2", "3"]


def test_a_failing_program_shows_its_own_traceback(tmp_path):
    done = run(tmp_path, "import poptorch\nraise KeyError('its own')", SIMULATE)
    assert done.returncode == 1 and "KeyError: 'its own'" in done.stderr and "program.py" in done.stderr


def test_the_real_poptorch_is_never_replaced(tmp_path):
    (tmp_path / "poptorch").mkdir()
    (tmp_path / "poptorch" / "__init__.py").write_text("real = True\n")
    program = "import ipu_trainer.simulator as s\ns.install()"
    done = run(tmp_path, program, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and "the real poptorch is importable" in done.stderr
    done = run(tmp_path, "print(1)", SIMULATE, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and done.stderr.startswith("ipu-trainer: the real poptorch is importable")


def test_a_script_that_is_not_there_is_named(tmp_path):
    done = subprocess.run([sys.executable, *SIMULATE, "nowhere.py"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "nowhere.py is not a file" in done.stderr


def test_importing_the_simulator_imports_no_transformers_and_installs_nothing(tmp_path):
    program = """
        import sys
        import ipu_trainer.simulator
        assert not {"transformers", "datasets", "accelerate", "poptorch"} & set(sys.modules)
    """
    done = run(tmp_path, program)
    assert done.returncode == 0, done.stderr


def test_optimum_graphcore_trains_through_the_simulator_where_it_is_installed(tmp_path):
    if importlib.util.find_spec("optimum") is None or importlib.util.find_spec("optimum.graphcore") is None:
        pytest.skip("optimum-graphcore is not installed")
    program = """
        import torch
        from optimum.graphcore import IPUConfig, IPUTrainer, IPUTrainingArguments
        from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

        torch.manual_seed(0)
        small = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
        vit = ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **small))
        bert = BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=16, **small))
        images = [{"pixel_values": torch.randn(3, 16, 16), "labels": i % 2} for i in range(32)]
        texts = [{"input_ids": torch.randint(5, 50, (8,)), "attention_mask": torch.ones(8, dtype=torch.long),
                  "token_type_ids": torch.zeros(8, dtype=torch.long), "labels": i % 2} for i in range(32)]
        for half in (False, True):
            for model, data in ((vit, images), (bert, texts)):
                config = IPUConfig(layers_per_ipu=[1, 1], ipus_per_replica=2, gradient_accumulation_steps=4,
                                   matmul_proportion=0.2, inference_device_iterations=2)
                args = IPUTrainingArguments(output_dir="out", max_steps=3, per_device_train_batch_size=1, report_to=[],
                                            fp32=not half, loss_scaling=64, dataloader_num_workers=0, logging_steps=1,
                                            disable_tqdm=True, save_strategy="no")
                trainer = IPUTrainer(model=model, ipu_config=config, args=args, train_dataset=data)
                result = trainer.train()
                assert 0 < result.training_loss < 2, result
                trainer.model.float()
        print("trained")
    """
    done = run(tmp_path, program, SIMULATE)
    assert done.returncode == 0 and "trained" in done.stdout, done.stderr[-3000:]


MODULE = """
    import sys
    import poptorch
    import torch
    from .numbers_of_it import WIDTH
    from multiprocessing import get_context

    def width(_):
        return WIDTH

    if __name__ == "__main__":
        model = poptorch.inferenceModel(torch.nn.Linear(WIDTH, 1))
        with get_context("spawn").Pool(1) as pool:  # what it pickles is found again under the module's name
            assert pool.map(width, [0]) == [WIDTH]
        print(tuple(model(torch.ones(2, WIDTH)).shape), sys.argv[1:], sys.argv[0].endswith("train.py"))
"""


def simulate_module(tmp_path, *words):
    package = tmp_path / "package"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text("")
    (package / "numbers_of_it.py").write_text("WIDTH = 3\n")
    (package / "train.py").write_text(textwrap.dedent(MODULE))
    command = [sys.executable, *SIMULATE, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=str(tmp_path), timeout=180)


def test_a_module_runs_as_python_m_runs_it(tmp_path):
    done = simulate_module(tmp_path, "-m", "package.train", "--epochs", "1", "-m", "x")
    assert done.returncode == 0 and done.stdout.strip() == "(2, 1) ['--epochs', '1', '-m', 'x'] True", done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package.trian", "there is no module package.trian in"),
        ("package.train.it", "there is no module package.train.it in"),
        ("package", "a package without __main__.py"),
        ("package/train.py", "not a module's name"),
    ],
)
def test_a_module_that_cannot_run_is_refused_in_one_line(tmp_path, name, message):
    done = simulate_module(tmp_path, "-m", name)
    assert done.returncode == 1 and done.stderr.startswith(f"ipu-trainer: -m {name}: ") and message in done.stderr
    assert done.stderr.count("\n") == 1 and not done.stdout


def test_the_modules_that_optimum_graphcore_compiles_are_imported_in_every_way(tmp_path):
    if importlib.util.find_spec("optimum") is None or importlib.util.find_spec("optimum.graphcore") is None:
        pytest.skip("optimum-graphcore is not installed")
    program = """
        import optimum.graphcore.custom_ops.utils as first
        import optimum.graphcore.custom_ops.sdk_version_hash.sdk_version_hash_lib as compiled
        import optimum
        from optimum.graphcore.custom_ops import utils
        from optimum.graphcore.custom_ops.sdk_version_hash import sdk_version_hash

        assert first is utils is optimum.graphcore.custom_ops.utils
        print(sdk_version_hash(), compiled.sdk_version_hash(), utils.load_lib.__module__)
    """
    done = run(tmp_path, program, SIMULATE)
    assert done.stdout.split() == ["simulator", "simulator", "ipu_trainer.simulator.sdk.optimum_extensions"], (
        done.stderr
    )

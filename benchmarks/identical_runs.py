"""Are losses and weights bit for bit what they were? Records the demo and one run of each task, on the host and simulated.

    python benchmarks/identical_runs.py record before.json      with the code before a change, then again after.json
    python benchmarks/identical_runs.py compare before.json after.json

A change that should change no number is proven by equal files. Two records compare only if the same machine, the same versions
and the same number of threads (one) made them. About three minutes on one core.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Wall-clock and memory differ from run to run.
MEASURED = ("_per_second", "runtime", "memory_bytes", "data_wait_share", "compile_seconds", "total_flos")
PROFILE = {"replication_factor": 2, "gradient_accumulation_steps": 9, "device_iterations": 1, "layers_per_ipu": [1, -1]}
COMMAND = "import sys; from ipu_trainer.cli import main; sys.exit(main(sys.argv[1:]))"


def jobs(folder, cpu):
    """(name, words of `ipu-trainer`, folder of the run) of every recorded run; cpu: the flag that keeps to the CPU."""
    profile = folder / "ipu_config.json"
    profile.write_text(json.dumps(PROFILE))
    common = ["--seed", "3", "--logging_steps", "1", "--disable_tqdm", "true", "--report_to", "none"]
    vit = ["train", "chest-xray", "--data", folder / "prepared", "--model", folder / "phantoms" / "model", "--report", "false",
           "--num_bootstrap", "20", "--num_train_epochs", "2", "--per_device_train_batch_size", "4", *common]  # fmt: skip
    text = ["train", "language-modeling", "--corpus", folder / "corpus", "--model", "gpt2-nano", "--vocab_size", "320",
            "--model_overrides", "n_embd=32 n_head=2", "--sequence_length", "32", "--prompts", "def add_1", "--sample_tokens", "4",
            "--per_device_train_batch_size", "2", "--max_steps", "12", "--learning_rate", "5e-3", *common]  # fmt: skip
    pairs = ["train", "seq2seq", "--pairs", folder / "pairs.jsonl", "--vocab_size", "320", "--source_length", "12",
             "--target_length", "8", "--model_overrides", "d_model=32 d_kv=8 d_ff=64", "--per_device_train_batch_size", "2",
             "--max_steps", "12", "--learning_rate", "5e-3", *common]  # fmt: skip
    for task, words in (("chest-xray", vit), ("language-modeling", text), ("seq2seq", pairs)):
        for place in ("host", "simulated"):
            output = folder / f"{task}-{place}"
            more = ["--gradient_accumulation_steps", "8", f"--{cpu}", "true"]
            if place == "simulated":
                more = ["--backend", "simulated", "--ipu_config", profile]
            yield f"{task}, {place}", [*words, *more, "--output", output], output


def write_inputs(folder):
    """A small corpus of code, and pairs of texts."""
    for package in range(10):
        (folder / "corpus" / f"package{package}").mkdir(parents=True)
        code = "\n".join(f"def add_{i}(x):\n    return x + {i + package}\n" for i in range(40))
        (folder / "corpus" / f"package{package}" / "code.py").write_text(code)
    lines = [
        json.dumps({"source": f"number {i % 10} of {i}", "target": f"{i % 10}", "group": f"g{i % 8}"})
        for i in range(160)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(lines))


def run(words, cwd):
    """Run a command with one thread; ends the recording with its output where it fails."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{words}\n{done.stdout}\n{done.stderr}")


def read_run(folder):
    """Losses and metrics of every log, and a digest of every tensor, of a finished run."""
    from safetensors.torch import load_file

    history = json.loads((folder / "history.json").read_text())
    logs = [{k: v for k, v in entry.items() if not k.endswith(MEASURED)} for entry in history]
    tensors = load_file(str(folder / "model.safetensors"))
    weights = {
        name: hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()[:16] for name, value in tensors.items()
    }
    return {"logs": logs, "weights": weights}


def record(path, demo):
    import torch
    import transformers
    from transformers import TrainingArguments

    import ipu_trainer.simulator  # noqa: F401

    cpu = "use_cpu" if "use_cpu" in TrainingArguments.__dataclass_fields__ else "no_cuda"
    recorded = {"torch": torch.__version__, "transformers": transformers.__version__, "runs": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        phantoms = ["--output", "phantoms", "--num_images", "160", "--size", "48", "--model_size", "32"]
        run(["-c", COMMAND, "phantoms", "chest-xray", *phantoms], folder)
        inputs = ["--csv", "phantoms/phantoms.csv", "--images", "phantoms/images", "--output", "prepared"]
        run(["-c", COMMAND, "prepare", "chest-xray", *inputs, "--size", "32", "--workers", "1"], folder)
        for title, words, output in jobs(folder, cpu):
            run(["-c", COMMAND, *words], folder)
            recorded["runs"][title] = read_run(output)
            print(f"{title:30}{len(recorded['runs'][title]['logs'])} logs", flush=True)
        flags = ["--num_train_epochs", "2", "--num_bootstrap", "20", "--logging_steps", "1", "--report_to", "none"]
        run([demo, "--output", "demo", "--num_images", "200", f"--{cpu}", "true", *flags], folder)
        recorded["runs"]["demo"] = read_run(folder / "demo" / "run")
    Path(path).write_text(json.dumps(recorded, indent=1))
    print(path)


def compare(before, after):
    """Exit code 1, and the first differences, unless all numbers are the same."""
    one, other = (json.loads(Path(path).read_text()) for path in (before, after))
    for name in ("torch", "transformers"):
        if one[name] != other[name]:
            sys.exit(f"{name} {one[name]} and {other[name]} do not compare")
    different = 0
    for title in {**one["runs"], **other["runs"]}:
        first, second = one["runs"].get(title, {}), other["runs"].get(title, {})
        same = first == second
        different += not same
        count = f"{len(second.get('logs', ()))} logs, {len(second.get('weights', ()))} tensors"
        print(f"{title:30}{'identical' if same else 'DIFFERENT'}: {count}")
        for part in ("logs", "weights") if not same else ():
            pairs = (first.get(part), second.get(part))
            if pairs[0] != pairs[1]:
                print(f"   {part}:\n   {str(pairs[0])[:600]}\n   {str(pairs[1])[:600]}")
    return 1 if different else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument(
        "--demo", default=str(Path(__file__).parents[1] / "scripts" / "demo_chest_xray.py"), help="the demo's script"
    )
    arguments = parser.parse_args()
    if arguments.action == "record":
        record(arguments.files[0], arguments.demo)
    else:
        sys.exit(compare(*arguments.files))

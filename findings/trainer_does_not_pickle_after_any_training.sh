#!/usr/bin/env bash
# Once any Trainer of a process has trained, no Trainer of that process pickles any more, not even a new one.
#
# Versions: transformers 5.24.0, accelerate 1.15.0, torch 2.13.0, cloudpickle 3.1.3, Python 3.11.
#
# Expected: a Trainer that was just made pickles, whatever other Trainers did before in the same process.
# Another's evaluation leaves it so; its training should too.
#
# Instead: after one finished training by another Trainer, a new Trainer, and one made before that training, raise
# TypeError. Deleting the one that trained and collecting garbage does not help.
#
# Why: every Accelerator holds accelerate's GradientState, whose attributes are one dictionary for the whole process.
# Its list of active data loaders is made of weak references. Training leaves one (dead) reference per epoch there, and
# weak references do not pickle. Setting that list back to [None] makes every Trainer pickle again, which the last two
# lines show.
#
# Output seen, without Trainer's own lines of metrics:
#   nothing ran yet          pickle       ok
#   nothing ran yet          cloudpickle  ok
#   another evaluated        pickle       ok
#   another evaluated        cloudpickle  ok
#   another trained          pickle       TypeError: cannot pickle 'weakref.ReferenceType' object
#   another trained          cloudpickle  TypeError: cannot pickle 'weakref.ReferenceType' object
#   made before that         pickle       TypeError: cannot pickle 'weakref.ReferenceType' object
#   made before that         cloudpickle  TypeError: cannot pickle 'weakref.ReferenceType' object
#   trained one is deleted   pickle       TypeError: cannot pickle 'weakref.ReferenceType' object
#   trained one is deleted   cloudpickle  TypeError: cannot pickle 'weakref.ReferenceType' object
#   references left by two epochs: [None, 'dead', 'dead']
#   list set to [None]       pickle       ok
#   list set to [None]       cloudpickle  ok
#
# Why it matters: a launcher or a hyperparameter search that sends a Trainer to worker processes works in a fresh
# script and fails in a notebook where a baseline was trained first, and the error names neither the training nor the
# attribute. A trainer for other hardware that keeps an Accelerator inside inherits this unless it leaves that state
# out when it pickles.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 HF_HOME="$work/home" TRANSFORMERS_VERBOSITY=error

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet transformers==5.24.0 accelerate==1.15.0 cloudpickle==3.1.3

cat > "$work/show.py" <<'PY'
import gc
import pickle
import sys

import cloudpickle
from accelerate.state import GradientState
from torch import nn
from transformers import Trainer, TrainingArguments


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x, labels=None):
        y = self.layer(x).squeeze(-1)
        return {"loss": ((y - labels) ** 2).mean(), "logits": y}


def make():
    rows = [{"x": [float(i)], "labels": float(i)} for i in range(8)]
    arguments = TrainingArguments(
        sys.argv[1], num_train_epochs=2, per_device_train_batch_size=4, use_cpu=True, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )
    return Trainer(model=Line(), args=arguments, train_dataset=rows, eval_dataset=rows)


def attempt(when, trainer):
    outcomes = []
    for module in (pickle, cloudpickle):
        try:
            module.dumps(trainer)
            outcome = "ok"
        except TypeError as error:
            outcome = f"TypeError: {error}"
        print(f"{when:<24} {module.__name__:<12} {outcome}")
        outcomes.append(outcome)
    return outcomes


works = ["ok", "ok"]
fails = ["TypeError: cannot pickle 'weakref.ReferenceType' object"] * 2

early = make()
assert attempt("nothing ran yet", early) == works
make().evaluate()
assert attempt("another evaluated", make()) == works
other = make()
other.train()
assert attempt("another trained", make()) == fails
assert attempt("made before that", early) == fails
del other
gc.collect()
assert attempt("trained one is deleted", make()) == fails
references = make().accelerator.gradient_state._dataloader_references_ref
left = [None if one is None else "dead" if one() is None else "alive" for one in references]
print("references left by two epochs:", left)
assert left == [None, "dead", "dead"]
GradientState._shared_state["_dataloader_references_ref"] = [None]
assert attempt("list set to [None]", make()) == works
PY
"$work/venv/bin/python" "$work/show.py" "$work/out"

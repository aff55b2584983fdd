#!/usr/bin/env bash
# warmup_ratio=1.0, carried over to warmup_steps=1.0, turns a warm-up over the whole training into one of a single step.
#
# Versions: transformers 5.24.0, compared with 4.57.6; accelerate 1.15.0, torch 2.13.0, Python 3.11.
#
# Expected: 4.57.6 has warmup_ratio, from 0 to 1 with both ends, and 1.0 means that all steps are warm-up. 5.24.0 does
# not know warmup_ratio and takes a fraction in warmup_steps. So the value moves to warmup_steps unchanged, a float stays
# a fraction, and 1.0 is the next thing after 0.99.
#
# Instead: values from 1 on are steps, floats too, and 1.0 is one step. Of 100 steps 0.99 gives 99 of warm-up and 1.0
# gives 1, without a warning. The documentation does give the range of fractions as [0, 1), so this is as written; what
# surprises is that the end of the old range is taken as a number of steps and not refused. To have the whole training
# as warm-up one now has to know its number of steps, or rely on rounding up: 0.9999 is enough for 100 steps.
#
# Output seen (of 100 steps):
#   transformers 4.57.6
#     warmup_ratio=0.5: 50
#     warmup_ratio=0.99: 99
#     warmup_ratio=1.0: 100
#   transformers 5.24.0
#     warmup_ratio=1.0: TypeError: TrainingArguments.__init__() got an unexpected keyword argument 'warmup_ratio'
#     warmup_steps=0.5: 50
#     warmup_steps=0.99: 99
#     warmup_steps=0.9999: 100
#     warmup_steps=1.0: 1
#     warmup_steps=1.5: 1
#
# Why it matters: a sweep over warm-up fractions that includes 1.0, or a trainer that still takes warmup_ratio and hands
# it on as warmup_steps, trains at the full learning rate from the second step. Such a trainer has to turn 1.0 into the
# number of steps itself, or refuse it.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 HF_HOME="$work/home" TRANSFORMERS_VERBOSITY=error

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet transformers==5.24.0 accelerate==1.15.0
# The older release goes into a folder of its own, put ahead of the environment, to share torch and accelerate.
"$work/venv/bin/pip" install --quiet --target "$work/old" transformers==4.57.6

cat > "$work/show.py" <<'PY'
import sys

import transformers
from transformers import TrainingArguments


def steps(**options):
    text = ", ".join(f"{name}={value}" for name, value in options.items())
    try:
        count = TrainingArguments(sys.argv[1], use_cpu=True, report_to="none", **options).get_warmup_steps(100)
    except TypeError as error:
        print(f"  {text}: TypeError: {error}")
        return None
    print(f"  {text}: {count}")
    return count


print("transformers", transformers.__version__)
if transformers.__version__ == "4.57.6":
    assert [steps(warmup_ratio=ratio) for ratio in (0.5, 0.99, 1.0)] == [50, 99, 100]
else:
    assert steps(warmup_ratio=1.0) is None
    assert [steps(warmup_steps=ratio) for ratio in (0.5, 0.99, 0.9999, 1.0, 1.5)] == [50, 99, 100, 1, 1]
PY
PYTHONPATH="$work/old" "$work/venv/bin/python" "$work/show.py" "$work/out"
"$work/venv/bin/python" "$work/show.py" "$work/out"

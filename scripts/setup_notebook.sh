#!/usr/bin/env bash
# Sets up a notebook machine (Paperspace Gradient, or any other with Python and torch), then runs a command in it:
#
#   bash scripts/setup_notebook.sh jupyter lab --allow-root --ip=0.0.0.0 --no-browser notebooks
#
# Data are read from PUBLIC_DATASETS_DIR (default /datasets, where Gradient mounts them read only); DATASETS_DIR and
# CHECKPOINT_DIR are written (default: below Gradient's /storage where that is, else below the home folder). A variable that is
# set already is left as it is. Without a command, prints the three lines for a shell: eval "$(bash scripts/setup_notebook.sh)".
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
PIP=${PIP:-$PYTHON -m pip}
# The image's torch stays: another build would cost gigabytes, and might not see the GPU.
if ! "$PYTHON" -c 'import sys, torch; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then
    echo "setup_notebook: $PYTHON needs to be Python 3.8 or later with torch. Choose an image that has them, or set PYTHON=." >&2
    exit 1
fi
$PIP install --quiet --editable '.[fast,search,notebooks]' >&2

if [ -d /storage ] && [ -w /storage ]; then root=/storage/ipu_trainer; else root=$HOME/ipu_trainer; fi
export PUBLIC_DATASETS_DIR=${PUBLIC_DATASETS_DIR:-/datasets}
export DATASETS_DIR=${DATASETS_DIR:-$root/datasets}
export CHECKPOINT_DIR=${CHECKPOINT_DIR:-$root/checkpoints}
mkdir -p "$DATASETS_DIR" "$CHECKPOINT_DIR"
# Kernels that import torch before ipu_trainer: threads sleep while they wait (docs/notebooks.md), unless a policy is set.
if [ -z "${GOMP_SPINCOUNT:-}${OMP_WAIT_POLICY:-}${KMP_BLOCKTIME:-}${KMP_LIBRARY:-}" ]; then export GOMP_SPINCOUNT=10000; fi

if [ "$#" -gt 0 ]; then
    exec "$@"
fi
for name in PUBLIC_DATASETS_DIR DATASETS_DIR CHECKPOINT_DIR; do
    printf 'export %s=%q\n' "$name" "${!name}"
done

#!/usr/bin/env bash
# The main job on a Pod, one process for each host server:
#
#   IPUS=16 INSTANCES=2 PARTITION=p16 scripts/poprun_chest_xray.sh --data prepared --model google/vit-base-patch16-224-in21k \
#       --output run --ipu_config vit_base_pod16
#
# Every process reads its own share of each global batch, the IPUs sum the gradients, process 0 writes the results.
# replication_factor of the IPUConfig counts all replicas; poprun shares them out over INSTANCES processes.
# Needs Poplar SDK 3.3 or 3.4 with its poptorch and popdist wheels. Not run by this project: no IPU was at hand (docs/ipu.md).
set -euo pipefail

IPUS_PER_REPLICA=${IPUS_PER_REPLICA:-4}
IPUS=${IPUS:?how many IPUs to use, such as IPUS=16}
INSTANCES=${INSTANCES:-1}
REPLICAS=$((IPUS / IPUS_PER_REPLICA))
CACHE=${POPLAR_EXECUTABLE_CACHE_DIR:-$HOME/.cache/ipu_trainer/executables}

if ((REPLICAS < INSTANCES || REPLICAS % INSTANCES)); then
    echo "$REPLICAS replicas of $IPUS_PER_REPLICA IPUs cannot be shared out over $INSTANCES processes" >&2
    exit 1
fi
exec poprun \
    --num-instances "$INSTANCES" \
    --num-replicas "$REPLICAS" \
    --ipus-per-replica "$IPUS_PER_REPLICA" \
    --executable-cache-path "$CACHE" \
    ${PARTITION:+--vipu-partition "$PARTITION"} \
    ipu-trainer train chest-xray --backend sdk --ipu_config_overrides "replication_factor=$REPLICAS" "$@"

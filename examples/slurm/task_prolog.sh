#!/bin/sh
# TaskProlog: what Slurm prints here as "export NAME=value" becomes part of each task's environment.
# Ranks whose Python has Rankscope installed attach by themselves; others are not concerned.
echo "export RANKSCOPE_ATTACH=1"
echo "export RANKSCOPE_DIR=${RANKSCOPE_DIR:-/dev/shm/rankscope}"
echo "export RANKSCOPE_JOB=slurm-${SLURM_JOB_ID:-unknown}"

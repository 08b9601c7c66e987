#!/bin/bash
# Keep new pods off nodes whose hardware a verdict accuses: reads the verdict (`report --json`, `diagnose --json`) on standard input and
# says which taint it would set. Sets it only where --apply is given; what runs on the node already is left alone (NoSchedule).
#
#   rankscope diagnose --prometheus http://prometheus:9090 --job train --json | examples/kubernetes-taint.sh [--apply]
#
# Needs of Kubernetes: get, list and patch nodes.

set -euo pipefail
KEY=${RANKSCOPE_TAINT_KEY:-rankscope/hardware}
LEAST_CONFIDENCE=${RANKSCOPE_TAINT_CONFIDENCE:-0.9}
apply=no
case ${1:-} in
    '') ;;
    --apply) apply=yes ;;
    *) echo "kubernetes-taint: $1 is not known: give --apply, or nothing for a dry run" >&2; exit 2 ;;
esac

# One line a host, "HOST CLASS", of findings that accuse its hardware and advise to act; names fit for a label, or none.
accused=$(python3 -c '
import json, re, sys
try:
    findings = json.load(sys.stdin)["findings"]
    sure = [f for f in findings if f["side"] == "hardware" and f["advice"] == "act" and f["confidence"] >= float(sys.argv[1])]
    named = {f["where"]["host"]: f["class"] for f in reversed(sure) if f["where"]["host"]}
except (ValueError, TypeError, KeyError, AttributeError):
    sys.exit("kubernetes-taint: no verdict on standard input")
for host, slug in named.items():
    if re.fullmatch(r"[A-Za-z0-9.-]{1,253}", host) and re.fullmatch(r"[a-z0-9-]{1,63}", slug):
        print(host, slug)
' "$LEAST_CONFIDENCE") || exit 2
[ -n "$accused" ] || { echo "no node is accused"; exit 0; }

nodes=$(kubectl get nodes -o name)
while read -r host class; do
    # The verdict has the first label of a name only.
    node=$(printf '%s\n' "$nodes" | awk -F/ -v host="${host%%.*}" '{ split($2, label, "."); if (label[1] == host) print $2 }')
    case $node in
        '' | *[[:space:]]*) echo "$host: not one node of that name; nothing is done" >&2; continue ;;
    esac
    if [ "$apply" = yes ]; then
        kubectl taint nodes "$node" "$KEY=$class:NoSchedule" --overwrite
    else
        echo "would run: kubectl taint nodes $node $KEY=$class:NoSchedule --overwrite"
    fi
done <<< "$accused"

#!/bin/bash
# Epilog, as root on each node of a job that ended: read the verdict of this node's recording, and where it accuses this
# node's hardware with enough confidence and advises to act, drain the node. Nothing is drained unless RANKSCOPE_DRAIN=yes stands in
# /etc/rankscope/slurm.conf; until then what would be done is logged.
#
# Never fails: an Epilog that ends with another status than 0 drains the node by itself.

set -u
RANKSCOPE=${RANKSCOPE:-/opt/rankscope/bin/rankscope}
RANKSCOPE_STATE=${RANKSCOPE_STATE:-/var/lib/rankscope}
RANKSCOPE_DRAIN=no
RANKSCOPE_DRAIN_CONFIDENCE=0.9
RANKSCOPE_SETTINGS=${RANKSCOPE_SETTINGS:-/etc/rankscope/slurm.conf}
# shellcheck disable=SC1090
[ -r "$RANKSCOPE_SETTINGS" ] && . "$RANKSCOPE_SETTINGS"

say() { logger -t rankscope -- "job ${SLURM_JOB_ID:-?}: $*" 2>/dev/null || echo "rankscope: $*" >&2; }

# Slurm's own numbers only: nothing that a user chose becomes a path.
case ${SLURM_JOB_ID:-} in
    '' | *[!0-9]*) say "no job id"; exit 0 ;;
esac
node=${SLURMD_NODENAME:-$(hostname -s)}
recordings="$RANKSCOPE_STATE/slurm-$SLURM_JOB_ID"
[ -d "$recordings" ] || exit 0

verdict=$(timeout 60 "$RANKSCOPE" report --json "$recordings" 2>/dev/null) || { say "no verdict"; exit 0; }
# One line, "CLASS CONFIDENCE", of the first finding that accuses hardware of this node, or nothing.
accused=$(printf '%s' "$verdict" | python3 -c '
import json, sys
node, least = sys.argv[1], float(sys.argv[2])
for finding in json.load(sys.stdin).get("findings", []):
    host = str(finding["where"].get("host") or node)
    sure = finding["advice"] == "act" and finding["confidence"] >= least
    if finding["side"] == "hardware" and sure and host.split(".")[0] == node.split(".")[0]:
        print(finding["class"], round(finding["confidence"], 3))
        break
' "$node" "$RANKSCOPE_DRAIN_CONFIDENCE") || { say "a verdict that cannot be read"; exit 0; }
[ -n "$accused" ] || exit 0

reason="rankscope: ${accused% *} (${accused##* }) in job $SLURM_JOB_ID"
if [ "$RANKSCOPE_DRAIN" = yes ]; then
    scontrol update NodeName="$node" State=DRAIN Reason="$reason" && say "drained $node: $reason"
else
    say "would drain $node: $reason"
fi
exit 0

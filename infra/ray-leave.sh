#!/bin/sh
# Before a worker node of Ray stops: `ray-leave.sh SECONDS`, on that node, with Ray's token in the environment.
#
# Tells Ray that this node goes within SECONDS. Nothing new starts on it, runs commit checkpoints as fast as they are
# written, and Ray ends the node once nothing runs on it. Returns then, or after SECONDS. For a preStop hook of
# Kubernetes, an ExecStop of systemd, or a cloud's notice of a reclaim.
set -eu
seconds=${1:?expected the seconds until this node goes}
ends=$(($(date +%s) + seconds))

raylet=$(grep -slx raylet /proc/[0-9]*/comm | head -n 1)
if [ -z "$raylet" ]; then
    echo "ray-leave: no node of Ray runs here"
    exit 0
fi
# Its own words say which node it is: of itself `ray drain-node` may take a node that was here before.
option() { tr '\0' '\n' <"${raylet%comm}cmdline" | sed -n "s/^--$1=//p"; }
timeout "$seconds" ray drain-node --address="$(option gcs-address)" --node-id="$(option node_id)" \
    --reason=DRAIN_NODE_REASON_PREEMPTION --reason-message="the machine stops" --deadline-remaining-seconds="$seconds"
while [ "$(date +%s)" -lt "$ends" ] && [ -e "$raylet" ]; do
    sleep 1
done

"""A Ray cluster of two nodes on this machine, in a process of its own: `python -m tests.trainers.nodes`.

Prints its address, then obeys one word a line: `kill` ends the second node as a power cut does, `drain SECONDS` tells
Ray that it will go. Its environment says the token. Each node has one CPU and an address of its own on loopback:
a driver joins the node that has its address, and the second one is to be lost without the driver.
"""

import subprocess
import sys

from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}
HEALTH = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}


def main() -> None:
    """Start, obey, end with stdin."""
    head = {**NODE, "node_ip_address": "127.0.0.1", "include_dashboard": False, "_system_config": HEALTH}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(**NODE, node_ip_address="127.0.0.2")
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.startswith("drain"):
            drain(cluster.address, second.node_id, line.split()[1])
        else:
            cluster.remove_node(second, allow_graceful=False)
        print("done", flush=True)
    cluster.shutdown()


def drain(address: str, node: str, seconds: str) -> None:
    """What a cloud's notice of a preemption becomes."""
    ray = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address, "--node-id", node]
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]
    subprocess.run([*ray, *why, "--deadline-remaining-seconds", seconds], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()

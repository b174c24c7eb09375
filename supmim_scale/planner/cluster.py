"""GPUs, nodes and links, and how long a collective takes on them."""

import re
from dataclasses import dataclass

from supmim_scale.errors import UserError
from supmim_scale.hardware.gpus import Gpu, find_gpu


@dataclass(frozen=True)
class Cluster:
    """Equal nodes of equal GPUs; `network_bytes_per_s` is one direction of a whole node."""

    gpu: Gpu
    nodes: int
    gpus_per_node: int
    network_bytes_per_s: float

    @property
    def ranks(self) -> int:
        """GPUs of all nodes."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Collective:
    """Bytes that each rank takes in during a step, for one purpose.

    `in_node`: no byte leaves the node (hpZ's second shards).
    """

    name: str
    num_bytes: float
    times: int
    in_node: bool = False


def cluster_of(gpu: str, nodes: int, gpus_per_node: int, network: str = "400G") -> Cluster:
    """A cluster from the command line's words. Raises `UserError`."""
    for name, value in (("--nodes", nodes), ("--gpus-per-node", gpus_per_node)):
        if value < 1:
            raise UserError(name, f"{value}", "1 or more", f"set {name} to 1 or more")
    return Cluster(find_gpu(gpu), nodes, gpus_per_node, network_bytes_per_s(network, gpus_per_node))


def network_bytes_per_s(text: str, gpus_per_node: int) -> float:
    """Bytes/s in one direction of a node: `8x400G` is eight ports of 400 Gbit/s, `400G` one a GPU.

    Raises `UserError`.
    """
    match = re.fullmatch(r"(?:(\d+)x)?(\d+(?:\.\d+)?)G", text)
    if match is None or not float(match[2]) or match[1] == "0":
        raise UserError(
            "--network",
            f"'{text}'",
            "400G (one port of 400 Gbit/s a GPU) or 1x100G (ports a node)",
            "write, say, --network 8x400G",
        )
    ports = int(match[1]) if match[1] else gpus_per_node
    return ports * float(match[2]) * 1e9 / 8


def collective_s(collective: Collective, cluster: Cluster) -> tuple[float, float]:
    """(seconds on the links inside nodes, seconds on the network), all times of a step.

    Bandwidth alone: of a tensor that N ranks hold in parts, a rank takes in (N-1)/N over its
    link, and a node of n takes in (n-1)/n over its ports. Both go on at once.
    """
    ranks, nodes = cluster.ranks, cluster.nodes
    if collective.in_node:
        ranks, nodes = min(ranks, cluster.gpus_per_node), 1
    volume = collective.num_bytes * collective.times
    # With one GPU a node nothing goes over the link.
    link = volume * (ranks - 1) / ranks / cluster.gpu.link_bytes_per_s
    network = volume * (nodes - 1) / nodes / cluster.network_bytes_per_s
    return (0.0 if cluster.gpus_per_node == 1 else link), network

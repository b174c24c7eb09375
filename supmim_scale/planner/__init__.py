"""Will it fit, how fast is it, what does it cost: answered before a job is queued, without a GPU.

Activations are counted on the real model under fake tensors; states follow ZeRO's arithmetic and
what DeepSpeed 0.19 was measured to keep; time is FLOPs over a stated share of the peak, and bytes
over bandwidths. Whatever is assumed is printed as an assumption.
"""

from supmim_scale.hardware.gpus import Gpu, find_gpu
from supmim_scale.planner.cluster import Cluster, cluster_of
from supmim_scale.planner.fit import Verdict, fits

__all__ = ["Cluster", "Gpu", "Verdict", "cluster_of", "find_gpu", "fits"]

"""A node that runs containers as processes: `Node`, and what its caller chooses."""

from capstan_local.node.images import ImageRule
from capstan_local.node.kubelet import KubeletAccess
from capstan_local.node.node import Node

__all__ = ["ImageRule", "KubeletAccess", "Node"]

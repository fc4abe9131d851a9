"""What kube-scheduler and kube-controller-manager do on a real cluster, as far as a laptop needs it."""

from capstan_local.controllers.run import run_controllers

__all__ = ["run_controllers"]

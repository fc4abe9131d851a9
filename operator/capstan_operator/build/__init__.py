"""Pure: the Kubernetes objects of a job, computed from its spec."""

"""Schemas and patches of Kubernetes objects: pure functions, no I/O."""

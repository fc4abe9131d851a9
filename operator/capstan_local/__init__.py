"""A Kubernetes API server and a node in one Python process, for development. Knows nothing of Capstan."""

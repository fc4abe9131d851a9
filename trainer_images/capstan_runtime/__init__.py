"""What runs inside a pod: supervisor, training loop, checkpoints, and the two trainers."""

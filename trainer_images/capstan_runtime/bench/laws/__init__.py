"""Scaling laws: how the loss falls with model size and data, with what is known of it and what is not."""

"""The Flax engine: NNX module definitions, one compiled step, data parallel over processes."""

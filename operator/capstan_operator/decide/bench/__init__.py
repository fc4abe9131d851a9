"""What `decide_benchmark` is made of."""

"""What `decide_inference_service` is made of: one file per policy."""

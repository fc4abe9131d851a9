"""What trial pods measure, one file for each workload."""

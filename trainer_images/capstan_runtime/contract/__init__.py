"""What the operator and the pods agree on: the run, its state, exit codes, names. Imports pydantic only."""

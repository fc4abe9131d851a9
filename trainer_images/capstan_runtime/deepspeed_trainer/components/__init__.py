"""What a model may be given: one file for each kind of component."""

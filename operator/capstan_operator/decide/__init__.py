"""Pure decisions: a snapshot and a time in, what to do out."""

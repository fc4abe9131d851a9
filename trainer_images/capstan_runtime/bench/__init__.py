"""Measures: trials in pods of their own, what follows from them, and how that is shown."""

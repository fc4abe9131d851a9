"""Samples by number: what a run trains on, in which order, and in which batches. Imports numpy, no framework."""

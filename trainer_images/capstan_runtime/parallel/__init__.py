"""Arithmetic of who holds what."""

"""Checkpoints whose every byte is verified: sharded, hashed, committed last, chosen by what verifies.

Imports numpy, blake3 and pydantic; no framework.
"""

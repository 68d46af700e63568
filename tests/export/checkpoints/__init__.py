"""Checkpoints of every origin, as bundles."""

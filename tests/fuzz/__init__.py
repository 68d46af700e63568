"""Fuzzing: options and manifests (options.py), operators (operators.py), untrusted files by coverage (files.py)."""

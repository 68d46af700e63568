"""Fuzzing: options and manifests (options.py), operators (operators.py, nodes.py), untrusted files (files.py)."""

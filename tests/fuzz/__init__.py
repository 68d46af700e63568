"""Fuzzing: random options and manifests (options.py), and bytes of strangers' files guided by coverage (files.py)."""

"""Exported graphs against transformers."""

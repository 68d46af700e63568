"""Builders of tiny models, checkpoints and bundles that the tests share."""

"""The training loop: optimizer steps, checkpoints, logs and processes. Knows nothing about losses or data sets."""

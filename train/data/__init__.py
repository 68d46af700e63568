"""Data of a training: samples, their files and shards, their order, and the batches that a step reads."""

"""Tests of training data: lists, shards, CapFilt."""

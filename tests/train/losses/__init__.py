"""Tests of the losses of both stages."""

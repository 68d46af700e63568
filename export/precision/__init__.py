"""Precisions of a graph: weights in 4 and 8 bits, static int8, and the smoothing before it."""

"""Brings a graph to a precision: floats, weights in 4 and 8 bits, int8. `apply.py` is the way in."""

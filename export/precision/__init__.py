"""Bring graphs to a precision: floats, 4- and 8-bit weights, int8. Start with `apply.py`."""

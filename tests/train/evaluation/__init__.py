"""Tests of evaluation and calibration."""

"""Evaluation: annotations, predictions and the metrics of captions, answers and retrieval."""

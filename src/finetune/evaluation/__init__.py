"""Evaluation of models on held-out documents."""

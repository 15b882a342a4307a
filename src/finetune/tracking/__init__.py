"""Metrics: rank 0 writes them to a file, and a process outside of jobs sends them to MLflow."""

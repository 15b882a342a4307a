"""Metrics: the spool that rank 0 writes, and MLflow, which one process outside of jobs fills from it."""

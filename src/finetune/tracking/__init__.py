"""Metrics: the spool that rank 0 writes, and MLflow, which a process outside of jobs fills."""

"""Metrics: the spool that a rank writes, and MLflow, which one writer outside of jobs fills."""

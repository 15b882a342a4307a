"""Tracking never stops a run: jobs append to a local spool; one locked writer outside them fills MLflow."""

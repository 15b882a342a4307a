"""Runs on disk: their files, states, attempts and base models. No torch is needed."""

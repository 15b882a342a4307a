"""Runs on disk, for any process: their files, states, attempts and base models. No torch."""

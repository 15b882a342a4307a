"""Runs on disk, as any process reads them: their files, states, attempts and base models. No torch."""

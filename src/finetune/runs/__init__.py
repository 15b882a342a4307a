"""A run on disk, as any process reads it: its files, state, attempts and base model. No torch."""

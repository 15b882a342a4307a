"""A training run, as each rank executes it. Start reading at loop.py."""

"""The training run of a rank: start reading at loop.py."""

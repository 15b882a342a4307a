"""One rank's training run: read loop.py first."""

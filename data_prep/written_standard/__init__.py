"""Bokmål or Nynorsk: a table of weights (table.py), and the script that made it (train.py, README.md)."""

"""An invented corpus: see README.md beside this file."""

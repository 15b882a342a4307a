"""The reference pages, generated from the code."""

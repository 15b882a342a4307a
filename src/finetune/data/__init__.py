"""Rows of a corpus: cutting, packing, and their distribution over ranks."""

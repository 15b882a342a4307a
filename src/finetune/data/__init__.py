"""Rows of a corpus cut, packed and dealt to ranks."""

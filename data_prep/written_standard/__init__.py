"""Identification of Bokmål, Nynorsk, Danish and Swedish by tables of weights.

table.py scores words with a table, train.py computes the tables, and README.md describes their
sources.
"""

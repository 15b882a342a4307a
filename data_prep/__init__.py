"""Preparation of corpora: raw Norwegian public-sector text in, licensed, de-identified token shards out."""

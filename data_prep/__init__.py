"""Preparation of corpora: licensed, de-identified token shards from Norwegian public-sector texts."""

"""Preparation of corpora: from raw Norwegian public-sector texts to licensed, de-identified token shards.
"""

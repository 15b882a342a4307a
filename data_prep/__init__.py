"""From raw Norwegian public-sector text to licensed, de-identified token shards."""

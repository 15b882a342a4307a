"""From documents to token shards: the tokenizer, chat templates, rows, and the two steps of a preparation
that use them."""

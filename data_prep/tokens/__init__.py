"""Tokenization: the tokenizer, chat templates, rows of tokens, and the steps that use them."""

"""Fine-tune open language models on Norwegian public-sector text."""

__version__ = "0.1.0"

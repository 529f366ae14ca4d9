"""BERT entity linking: fine-tuning and proven export."""

__version__ = "0.1.0"

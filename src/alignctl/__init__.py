"""Alignment of large language models, from a Hugging Face checkpoint and back."""

__version__ = "0.1.0"

"""Checkpoints: Hugging Face and Megatron-Core folders, read and written tensor by tensor."""

"""PyTorch's files, read so that nothing in them is run."""

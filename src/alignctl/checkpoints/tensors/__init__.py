"""Tensors that are read when they are needed, and how their bytes come and go."""

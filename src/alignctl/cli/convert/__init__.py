"""Turn checkpoints into other formats, and compare them."""

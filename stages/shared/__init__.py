"""What stages have in common: the value that a stage is, and both halves of its work."""

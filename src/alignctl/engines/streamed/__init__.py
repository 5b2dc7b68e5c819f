"""Models run one layer at a time, to verify a conversion."""

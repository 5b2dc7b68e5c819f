"""What a machine lacks, and what mends it."""

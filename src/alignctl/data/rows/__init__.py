"""Rows of files, and what they say in the shapes that users have."""

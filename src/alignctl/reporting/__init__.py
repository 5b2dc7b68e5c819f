"""Reporting: metrics on disk, progress on the terminal, a preview of what is learned."""

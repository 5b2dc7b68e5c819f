"""Presets: files that extend each other, and what a stage makes of them."""

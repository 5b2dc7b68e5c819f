"""Engines: a sharded model with its optimizer, behind one protocol."""

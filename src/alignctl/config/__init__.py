"""Every knob once: typed, bounded, documented; presets, overrides and their errors."""

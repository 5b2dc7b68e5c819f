"""From rows to text, and from text to tokens."""

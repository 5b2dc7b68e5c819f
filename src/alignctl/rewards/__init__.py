"""What an answer is worth: rules that check it, and how their rewards join those of a model."""

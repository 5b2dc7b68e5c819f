"""Raw text on its way to pretraining: cleaned, sharded, tokenised into Megatron's format."""

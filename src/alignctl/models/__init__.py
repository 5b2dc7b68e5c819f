"""The model families: their architecture, their Megatron modules and their one weight map."""

"""The engine on Megatron-Core."""

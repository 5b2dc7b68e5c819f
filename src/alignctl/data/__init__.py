"""From rows of text on disk to padding-free batches of tokens; numpy only, no torch."""

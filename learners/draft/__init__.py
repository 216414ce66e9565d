"""A draft of a language model, learned from what its target answered."""

"""A language model behind vLLM: its engine, what is captured of its completions, and how its draft is swapped."""

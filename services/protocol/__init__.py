"""The Open Inference Protocol as messages: requests, answers, labels, tokens."""

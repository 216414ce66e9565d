"""What operators and gates decide, and what they see before they do."""

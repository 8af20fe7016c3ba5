"""Models behind `LLMPort`."""

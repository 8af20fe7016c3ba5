"""Speech to text and text to speech: one adapter per provider, and the fallback over several."""

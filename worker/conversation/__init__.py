"""A session's conversation as a worker keeps it: stored as it was said, and found by whoever goes on with it."""

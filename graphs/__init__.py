"""The conversation: specialists, the supervisor graph that routes between them, and the models behind it."""

"""Evals: scripted conversations with an agent, and whether it did in each line what was expected."""

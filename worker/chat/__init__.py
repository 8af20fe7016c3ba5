"""Text turns: a worker of its own that answers what users write, through the same graph and memory as calls."""

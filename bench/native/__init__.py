"""What one would take instead of Muster: LiveKit Agents' own workers, under the same faults."""

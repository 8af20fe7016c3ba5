"""The two HTTP services: the agent service runs sessions, the control plane lets callers into rooms."""

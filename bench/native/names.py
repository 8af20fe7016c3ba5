"""What the worker and those who look for its agents agree on; light, because the worker's processes load it too."""

#: By which the agent is dispatched.
AGENT_NAME = "native"
#: The attribute of its participant that tells which process it is.
PID = "native.pid"

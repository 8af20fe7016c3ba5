"""The fault suite: real calls, real faults, and invariants that hold all the time."""

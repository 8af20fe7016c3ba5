"""What stands in for the outside world on one machine: servers, providers, a caller, and their supervisor."""

"""One live call: room, pipeline, lifecycle and transcript; heavy imports, loaded only in a worker."""

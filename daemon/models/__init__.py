"""Models on disk, their versions, and the state each version is in."""

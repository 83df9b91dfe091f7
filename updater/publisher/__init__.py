"""The other side: makes a repository, signs it, says what the fleet shall serve."""

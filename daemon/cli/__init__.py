"""inferctl: one file per verb group."""

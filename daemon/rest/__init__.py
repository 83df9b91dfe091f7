"""The HTTP front end: one file per wire protocol."""

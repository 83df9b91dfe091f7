"""Installs signed bundles. Works when the daemon does not."""

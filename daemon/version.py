"""The one version number of daemon, updater and package."""

VERSION = "0.1.0"

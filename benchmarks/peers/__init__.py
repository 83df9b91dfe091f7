"""Who is compared: one file per server."""

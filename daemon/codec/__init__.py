"""Bytes on the wire to tensors and back, one file per wire format; pure."""

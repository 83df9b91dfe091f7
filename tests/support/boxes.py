"""Compares boxes."""

from __future__ import annotations


def overlap(a, b):
    """Intersection over union of two boxes as (ymin, xmin, ymax, xmax)."""
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, height) * max(0, width)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared)

"""Encoders that take pictures at their own shape: as many patches as a picture has, so crops of unequal length. What
they share is in `patches.py`.

May import: canvas, config, encoders.media, model.
"""

"""Rows of speech: manifests, spoken commands, noise, and hypotheses of a first pass.

May import: mmdiff, encoders, tasks.dialogue.
"""

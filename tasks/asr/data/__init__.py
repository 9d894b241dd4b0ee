"""Rows of speech: manifests, spoken commands, noise, and hypotheses of a first pass.

May import: the core, encoders.media, tasks.dialogue.
"""

"""Entries to the harnesses that others evaluate with, in their words.

May import: backbones, canvas, config, data, model, samplers, session.
"""

"""Models for others: what a folder is, its card, folders and repositories of the hub.

May import: backbones, canvas, config, model, runs, session.
"""

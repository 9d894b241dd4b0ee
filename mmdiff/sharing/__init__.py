"""Models for others: what a folder is, its card, and folders of the hub.

May import: backbones, config, model, runs, session.
"""

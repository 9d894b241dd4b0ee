"""Models for others: what a folder is, and its card.

May import: config, runs.
"""

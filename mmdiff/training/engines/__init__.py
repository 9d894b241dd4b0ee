"""Engines of others, which take the steps of a stage in place of the loop's own.

May import: config, model, runs.
"""

"""The files that a configuration names and a person has: which are missing, and the first rows of those that are there.

May import: config, protocols.
"""

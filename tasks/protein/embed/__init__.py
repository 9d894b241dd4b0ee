"""Embeddings of residues and sequences, their files, and probes trained on them.

May import: tasks.protein.data and below.
"""

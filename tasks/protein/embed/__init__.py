"""Embeddings of residues and sequences, their files, and probes trained on them.

May import: the core, tasks.protein.data, tasks.protein.residues, tasks.protein.session.
"""

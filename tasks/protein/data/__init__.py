"""Rows of sequences: FASTA, A3M and CSV files, aligned families, clusters, and families whose law is known.

May import: the core, encoders.protein, tasks.dialogue, tasks.protein.residues.
"""

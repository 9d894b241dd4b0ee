"""Rows of any task from files: JSON lines, Parquet, WebDataset's tar shards, and `datasets`, all read row by row.

May import: data, protocols.
"""

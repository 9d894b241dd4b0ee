"""Metrics of designs and of mask filling, and the report about them.

May import: tasks.protein.design, score and below.
"""

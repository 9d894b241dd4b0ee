"""`mmdiff new`: packages of one's own, written from templates.

May import: nothing.
"""

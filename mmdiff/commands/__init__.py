"""The command line, and `mmdiff check`. Nothing imports this room but `__main__` and the `cli` of a task.

May import: the core.
"""

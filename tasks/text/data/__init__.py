"""Documents of files and of the Python library, and windows of so many tokens cut from them.

May import: the core.
"""

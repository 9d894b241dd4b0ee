"""A policy over HTTP: the server, the request it reads, and a client without torch.

May import: tasks.vla.task.
"""

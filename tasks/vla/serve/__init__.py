"""A policy over HTTP: the server, the request it reads, and a client without torch.

May import: the core, encoders.media, tasks.vla.task.
"""

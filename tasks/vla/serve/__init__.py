"""A policy over HTTP: the server, the request it reads, its simulator, and a client without torch.

May import: the core, encoders.media, tasks.vla.task, tasks.vla.worlds.
"""

"""`mmdiff inspect`: what a folder with a model is, and the memory it takes, without reading a tensor.

May import: backbones, canvas, config, model, runs.
"""

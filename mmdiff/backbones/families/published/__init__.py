"""What published models have in their config.json, by hub id: a file per family of architectures.

May import: backbones.shares.
"""

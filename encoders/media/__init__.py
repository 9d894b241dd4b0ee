"""What encoders read and share: pictures, sound, spectrograms, and the numbering of layers of vision towers.

May import: canvas, config.
"""

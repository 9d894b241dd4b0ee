"""What encoders read and share: pictures, sound, spectrograms, the numbering of layers of vision towers, and the names
that wav2vec's checkpoints have for things.

May import: backbones, canvas, config, model.
"""

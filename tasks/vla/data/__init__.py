"""Episodes and LeRobot data sets: reading, writing, statistics, augmentation, video.

May import: the core, encoders.media, tasks.vla.codecs.
"""

"""Episodes and LeRobot data sets: reading, writing, statistics, augmentation, video.

May import: tasks.vla.codecs.
"""

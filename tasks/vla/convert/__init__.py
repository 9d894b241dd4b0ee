"""Episodes of other layouts (HDF5, RLDS, numpy folders) to LeRobot data sets.

May import: config.typed, encoders.media, tasks.vla.data.
"""

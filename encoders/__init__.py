"""Encoders, one file each: raw numbers of one kind of media to features. See `mmdiff.protocols.Encoder`."""

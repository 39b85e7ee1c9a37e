"""Measured rates, each against the straightforward way in the same run: `make bench`."""

"""The same loop on a Ray cluster. The only folder of this package that imports ray."""

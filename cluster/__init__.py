"""What runs around a cluster: launch files, spot notices, their checks."""

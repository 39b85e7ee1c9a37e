"""A list of URLs and captions to image tars, by img2dataset in an environment of its own: `make download`."""

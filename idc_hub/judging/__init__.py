"""Judging a set: train a network on (lr, hr) pairs (`training`), measure what it learned (`evaluation`)."""

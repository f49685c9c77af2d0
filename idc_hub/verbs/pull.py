"""pull: download a condensed set from the Hub."""

from idc_hub.hub.pull import PullResult, pull

__all__ = ["PullResult", "pull"]

"""The methods of `idc select`, for recipes and for the command line, whose help does not wait for pydantic."""

from typing import Literal

SelectionMethod = Literal[
    "whole",
    "random",
    "herding",
    "herding-deepcore",
    "k-center",
    "dcsr",
    "cf-greedy",
    "hardness",
    "filtered",
    "leaves",
]

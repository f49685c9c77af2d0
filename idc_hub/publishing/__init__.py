"""The repository as the world sees it: card, pictures, and the way to and from the Hub.

`card` writes README.md from what the repository holds, `report` its pictures, `hub` pushes and pulls.
"""

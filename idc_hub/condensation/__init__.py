"""The paper's algorithm, and nothing else: from one photograph's LR patches to a few synthetic ones."""

"""Training networks on pairs and measuring them.

`recipe` says how, `pairs` reads LR and HR, `crops` draws what a step sees, `loop` trains, `launch` starts processes,
`evaluation` measures.
"""

"""Training networks on LR/HR pairs, and measuring them.

`recipe` is how to train; `pairs` reads LR and HR, `pairing` finds which files belong together, `pixels` puts them in
one file; `crops` draws what a step sees, `prefetch` ahead of time; `loop` trains, `launch` starts processes;
`evaluation` measures. `paired_patches` is for training loops outside this package.
"""

"""To the Hugging Face Hub and back: `push`, `pull`; `releases` say what is pushed, `revisions` what is there."""

"""The Hugging Face Hub: `push` and `pull`. `releases` defines what is pushed; `revisions` reads what is on the Hub."""

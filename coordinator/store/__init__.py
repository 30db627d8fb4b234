"""Where half messages live. `base.py` is the contract; a backend keeps it and passes tests/store/conformance."""

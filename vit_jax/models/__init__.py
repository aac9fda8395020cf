"""One file per architecture, named as the upstream file."""

"""The trainer: `python -m train.main`, `python -m train.predict`."""

import absl.logging

# Grain and Orbax report through absl, some of it on import, what a user of the trainer can do nothing about.
absl.logging.set_verbosity(absl.logging.ERROR)

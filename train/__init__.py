"""The trainer and its commands, such as `python -m train.main` and `python -m train.predict`."""

import absl.logging

# Grain and Orbax log through absl, partly on import; users of the trainer can do nothing about these messages.
absl.logging.set_verbosity(absl.logging.ERROR)

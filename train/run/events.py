"""TensorBoard's event files, through tensorboardX."""

import sys

hides_torch = "torch" not in sys.modules
if hides_torch:
    sys.modules["torch"] = None  # tensorboardX imports torch where it is installed, and that takes a second
try:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
finally:
    if hides_torch:
        del sys.modules["torch"]

__all__ = ["Event", "EventsWriter", "SessionLog", "Summary"]

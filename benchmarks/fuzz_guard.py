"""The guard of `fuzz.py`, which detects execution of code, new processes, connections, and changes of other files."""

import importlib.machinery
import os
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Guard:
    """An audit hook that detects and prevents actions that no reader of files needs."""

    STARTS = (
        "os.system",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "subprocess.Popen",
        "pty.spawn",
    )
    CONNECTS = ("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request")
    CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod")

    def __init__(self, scratch: Path):
        self._scratch, self._armed = str(scratch), False
        self._trusted = {name.partition(".")[0] for name in sys.modules} | sys.stdlib_module_names
        self._places = tuple({str(ROOT), sys.prefix, sys.base_prefix, "<frozen "})
        self.caught: list[str] = []
        sys.addaudithook(self._hook)

    def __enter__(self) -> "Guard":
        self.caught, self._armed = [], True
        return self

    def __exit__(self, *_) -> None:
        self._armed = False

    def _hook(self, event: str, args: tuple) -> None:
        if not self._armed:
            return
        self._armed = False  # the hook's own actions are not findings
        what = self._objection(event, args)
        if what:
            self.caught.append(what + "\n" + "".join(traceback.format_stack(limit=12)))
        self._armed = True
        if what:
            raise RuntimeError(f"fuzz: {what}")

    def _objection(self, event: str, args: tuple) -> str | None:
        match event:
            case "open":
                path, mode, flags = args
                writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) or set(mode or "") & set("wax+")
                outside = isinstance(path, str | bytes | os.PathLike) and not self._is_ours(path)
                return f"opens {path!r} for writing" if writes and outside else None
            case "import":
                return f"imports {args[0]}" if self._is_foreign(args[0].partition(".")[0]) else None
            case "exec" | "compile":
                file = args[0].co_filename if event == "exec" else str(args[1])
                parsed = event == "compile" and file == "<unknown>"  # by ast.literal_eval, which executes nothing
                made = file.startswith("<") and _imports()  # dataclasses compile their methods
                return None if parsed or made or file.startswith(self._places) else f"{event} of {file}"
            case "pickle.find_class":
                return f"unpickles {args}"
            case _ if event in self.STARTS or event in self.CONNECTS:
                return f"{event} {args}"
            case _ if event in self.CHANGES:
                return None if self._is_ours(args[0]) else f"{event} {args}"
        return None

    def _is_foreign(self, package: str) -> bool:
        """Whether a package would be imported from outside of the installed packages."""
        if package in self._trusted:
            return False
        spec = importlib.machinery.PathFinder.find_spec(package)
        places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
        return not all(place.startswith(self._places) for place in places if place)

    def _is_ours(self, path) -> bool:
        real = os.path.realpath(os.fsdecode(path))
        return real.startswith(self._scratch) or real in ("/dev/null", "/dev/tty")


def _imports() -> bool:
    """Whether a module is being imported."""
    frame = sys._getframe(2)
    while frame := frame.f_back:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
    return False

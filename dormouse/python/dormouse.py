"""Dormouse from the program's side: a Python program checkpoints itself, and has a say in every checkpoint that is made of it.

    import dormouse

    if dormouse.checkpoint() == "restored":
        print("here again, for the", dormouse.generation(), "time")

Without Dormouse underneath (no launcher around it, and no libdormouse installed) every call is harmless: checkpoint() gives "alone".
dormouse.h documents what each call does; a call that fails raises dormouse.Error, and the program runs on.

libdormouse.so is found by DORMOUSE_LIB, beside this file, in ../../target/release, or as the system's loader finds it.
"""
import ctypes
import os

__all__ = ["checkpoint", "generation", "name", "message", "disable", "enable", "critical", "drop", "keep", "hook", "unhook", "hook_timeout", "session", "Error"]


class Error(Exception):
    """Why something was not done; `code` is what ctl would have exited with."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def _load():
    here = os.path.dirname(os.path.abspath(__file__))
    places = [
        os.environ.get("DORMOUSE_LIB"),
        os.path.join(here, "libdormouse.so"),
        os.path.join(here, "../../target/release/libdormouse.so"),
        "libdormouse.so",
    ]
    why = ""
    for place in filter(None, places):
        try:
            return ctypes.CDLL(place), ""
        except OSError as e:
            why = str(e)
    return None, why


_BEFORE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_AFTER = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_char_p)
_RESTORED = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64)


class _Hook(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("before", _BEFORE),
        ("after", _AFTER),
        ("restored", _RESTORED),
        ("data", ctypes.c_void_p),
    ]


_lib, _why = _load()
if _lib is not None:
    _lib.dormouse_message.restype = ctypes.c_char_p
    _lib.dormouse_name.restype = ctypes.c_char_p
    _lib.dormouse_generation.restype = ctypes.c_uint64
    _lib.dormouse_drop.restype = ctypes.c_ssize_t
    _lib.dormouse_drop.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    _lib.dormouse_keep.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    _lib.dormouse_add_hook.argtypes = [ctypes.POINTER(_Hook)]
    _lib.dormouse_session.argtypes = [ctypes.c_char_p]

# What C may still call.
_hooks = {}


def _text(raw):
    return (raw or b"").decode(errors="replace")


def _must(result):
    if result < 0:
        raise Error(-result, message())
    return result


def checkpoint():
    """Makes a checkpoint of this program: "continued" when it is complete, "restored" in the restored program, "alone" without Dormouse."""
    if _lib is None:
        return "alone"
    return ("continued", "restored", "alone")[_must(_lib.dormouse_checkpoint())]


def message():
    """What there is to say of this thread's last call."""
    if _lib is None:
        return f"no checkpoint was made: libdormouse.so is not there ({_why})"
    return _text(_lib.dormouse_message())


def generation():
    """How often this program was restored."""
    return 0 if _lib is None else _lib.dormouse_generation()


def name():
    """Name of the session that this program is, or None."""
    raw = None if _lib is None else _lib.dormouse_name()
    return None if raw is None else _text(raw)


def disable():
    """Enters a critical section: no checkpoint until it is left. They nest."""
    if _lib is not None:
        _lib.dormouse_disable()


def enable():
    """Leaves a critical section."""
    if _lib is not None:
        _must(_lib.dormouse_enable())


class critical:
    """A critical section: `with dormouse.critical(): ...`"""

    def __enter__(self):
        disable()
        return self

    def __exit__(self, *_):
        enable()


def _memory(buffer):
    view = memoryview(buffer).cast("B")
    return ctypes.addressof((ctypes.c_char * len(view)).from_buffer(view)), len(view)


def drop(buffer):
    """The memory of a writable buffer (bytearray, array, numpy) is not worth keeping: zeros after a restore. Gives the bytes left out, whole pages.

    Take it back with keep() before the buffer goes or grows.
    """
    return 0 if _lib is None else _must(_lib.dormouse_drop(*_memory(buffer)))


def keep(buffer):
    """Takes drop() back."""
    if _lib is not None:
        _must(_lib.dormouse_keep(*_memory(buffer)))


def hook(name, before=None, after=None, restored=None):
    """Registers a hook; gives its number.

    before() runs before each checkpoint; an exception is a veto, with its text as the reason. after(number, why) runs after it; number is 0 and why
    a text if it failed. restored(generation) runs in a restored program. They run in a thread of Dormouse's.
    """
    if _lib is None:
        return 0

    def call_before(_, reason, size):
        try:
            if before:
                before()
            return 0
        except BaseException as e:
            text = (str(e) or type(e).__name__).encode()[: size - 1]
            ctypes.memmove(reason, text + b"\0", len(text) + 1)
            return 1

    def call_after(_, number, why):
        if after:
            after(number, None if why is None else _text(why))

    def call_restored(_, generation):
        if restored:
            restored(generation)

    calls = _Hook(name.encode(), _BEFORE(call_before), _AFTER(call_after), _RESTORED(call_restored), None)
    number = _must(_lib.dormouse_add_hook(ctypes.byref(calls)))
    _hooks[number] = calls
    return number


def unhook(number):
    """Takes a hook back."""
    if _lib is not None:
        _must(_lib.dormouse_remove_hook(number))
    # What C calls stays: one that runs at this moment runs to its end.


def hook_timeout(seconds):
    """How long one hook may take."""
    if _lib is not None:
        _lib.dormouse_hook_timeout(max(1, int(seconds * 1000)))


def session(name):
    """Makes this program, which was not started by launcher, a session: see dormouse_session in dormouse.h."""
    if _lib is not None:
        _must(_lib.dormouse_session(name.encode()))

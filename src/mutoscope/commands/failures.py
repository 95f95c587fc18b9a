"""Whose fault an exception is: exceptions that input causes count as bad input, whichever library raised them.

Imports nothing slow: exceptions of other libraries are recognised by the module of their class.
"""

from mutoscope.errors import UserError, reason
from mutoscope.writing import REFUSED_WRITES, write_problem

BAD_INPUT, OUR_FAULT = 2, 1

# Libraries that read files and addresses: their exceptions say that the content is at fault.
READERS = frozenset(
    "PIL av binascii _csv httpx huggingface_hub json lzma pickle _pickle pyarrow requests safetensors safetensors_rust "
    "struct tokenizers tomllib urllib zipfile zlib".split()
)
READER_BUILTINS = (EOFError, UnicodeError)
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "storage size calculation overflowed")
HELPER_ENDED = "A process that does part of the work was ended"
HELPER_ADVICE = (
    "The system does so where memory, or the shared memory of a container, is used up: choose fewer processes "
    "(num-workers) or smaller batches; an interrupted run continues."
)
REPORT = "This is a fault of Mutoscope: please report it with what the same command prints with --debug."


def explained(error: Exception) -> tuple[str, int]:
    """The sentence for an exception, and the exit status."""
    if isinstance(error, UserError):
        return str(error), BAD_INPUT
    if ran_out_of_memory(error):
        what = reason(error) if str(error) else "no more can be allocated"
        return f"Not enough memory: {what}. Choose fewer or smaller clips, a smaller batch or model.", BAD_INPUT
    if isinstance(error, OSError):
        return of_the_system(error), BAD_INPUT
    if is_of_a_helper(error):
        return f"{HELPER_ENDED} ({reason(error)}). {HELPER_ADVICE}", BAD_INPUT
    if isinstance(error, ImportError):
        return (
            f"A library is missing or broken: {reason(error)}. Install mutoscope again, with the extra it needs.",
            BAD_INPUT,
        )
    if isinstance(error, READER_BUILTINS) or library_of(error) in READERS:
        return f"The input cannot be read: {type(error).__name__}: {reason(error)}. Is the file complete?", BAD_INPUT
    return f"{type(error).__name__}: {reason(error)}. {REPORT}", OUR_FAULT


def is_of_a_helper(error: Exception) -> bool:
    """Whether a process that read clips or recorded episodes was ended from outside, mostly for want of memory."""
    return type(error).__name__ == "BrokenProcessPool" or (
        isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")
    )


def ran_out_of_memory(error: Exception) -> bool:
    """Whether Python, NumPy or torch could not allocate what was requested."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)
    )


def of_the_system(error: OSError) -> str:
    """Full disks, missing permissions and the like, with the file they concern."""
    if error.errno in REFUSED_WRITES:
        return str(write_problem(error.filename or ".", error, name=None if error.filename else "a file"))
    named = [repr(str(name)) for name in (error.filename, error.filename2) if name is not None]
    return f"{reason(error)}: {', '.join(named)}." if named else f"{reason(error)}."


def library_of(error: Exception) -> str:
    """The top-level module that defines the exception's class."""
    return type(error).__module__.partition(".")[0]

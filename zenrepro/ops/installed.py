"""Calling installed libraries: what one refuses is a reason, what fails is an error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from zenrepro.ops.entry import UnsupportedError

# A fault of the device or of its memory is never a refusal, whatever class it comes as.
_FAULTS = ("out of memory", "CUDA error", "CUDA driver", "CUDNN_STATUS_EXECUTION")


@contextlib.contextmanager
def refusals(*kinds: type[Exception]) -> Iterator[None]:
    """Raise UnsupportedError, with the first line of the library's own words, for errors of these
    classes: those by which it says, before any launch, that it does not take the arguments."""
    try:
        yield
    except UnsupportedError:
        raise
    except kinds as error:
        text = str(error).strip()
        if any(fault in text for fault in _FAULTS):
            raise
        first = text.partition("\n")[0] or f"{type(error).__name__} without a word"
        raise UnsupportedError(first) from error

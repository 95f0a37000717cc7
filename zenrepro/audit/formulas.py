"""placeholder"""

from collections.abc import Iterator

from zenrepro.audit.engine import Item, View


def formula(view: View) -> Iterator[Item]:
    yield from ()

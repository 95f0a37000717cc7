"""Fingerprints see meaning: every edit that can change a result, and no other."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenrepro.errors import InputError
from zenrepro.sources import fingerprint


def of(text):
    return fingerprint.of_code(text.encode(), "x.py").fingerprint


SAME = [
    ("x = 1\n", "x=(1)  # c\n\n"),
    ("def f():\n    '''d'''\n    return 1", "def f():\n    return 1"),
    ("class A:\n    x: int\n    '''what x is'''", "class A:\n    x: int"),
    ("s = 'a' 'b'", 's = "ab"'),
    ("s = u'a'", "s = 'a'"),
    ("s = f'a{x}' 'b'", "s = f'a{x}b'"),
    ("s = f'{x:}'", "s = f'{x}'"),
    ("s = 'é'", "s = '\\xe9'"),
    ("__version__ = '1'\nx = 1", "__version__ = '2'\nx = 1"),
    ("async def f():\n    'd'\n    await x", "async def f():\n    await x"),
]
DIFFERENT = [
    ("x = 1", "x = 2"),
    ("x = 1", "x = 1.0"),
    ("x = 1", "x = True"),
    ("x = None", "x = ..."),
    ("x = 'a'", "x = b'a'"),
    ("x = 0.1", "x = 0.10000000000000002"),
    ("x = 0.0", "x = -0.0"),
    ("f(a, b)", "f(a, b=b)"),
    ("f(*a)", "f(a)"),
    ("f(a, b)", "f([a, b])"),
    ("f((a, b))", "f(a, b)"),
    ("x[1:]", "x[:1]"),
    ("x = {1: 2, **y}", "x = {1: 2, y: None}"),
    ("def f(a, b=1): pass", "def f(a, *, b=1): pass"),
    ("def f(a, /): pass", "def f(a): pass"),
    ("def f() -> int: pass", "def f() -> str: pass"),
    ("s = f'{x!r}'", "s = f'{x!s}'"),
    ("s = f'{x:.2f}'", "s = f'{x:.3f}'"),
    ("s = f'{x}'", "s = 'x'"),
    ("s = f'a{x}b'", "s = f'{x}ab'"),
    ("def f(): return 1", "async def f(): return 1"),
    ("return_ = x if y else z", "return_ = z if y else x"),
    ("try:\n    a\nexcept E:\n    b", "try:\n    a\nexcept F:\n    b"),
    ("from . import a", "from .. import a"),
    ("import a as b", "import a as c"),
    ("global_ = lambda x: x", "global_ = lambda y: y"),
    ("x = 'a'; y = 'bc'", "x = 'ab'; y = 'c'"),
    ("if a:\n    'd'\n    b", "if a:\n    b\n    c"),
    ("@jit\ndef f(): pass", "def f(): pass"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), SAME)
def test_same_meaning_same_fingerprint(a, b):
    assert of(a) == of(b)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_meaning_different_fingerprint(a, b):
    assert of(a) != of(b)


def test_pinned_so_that_every_python_version_must_agree():
    """Records travel between Python versions: the fingerprint of a text may never change."""
    text = '''
"""Docstring."""
from __future__ import annotations
import a.b as c
@dec(1, k="é", s=f"{x!r:>{w}} {y=}")
class A(B, metaclass=M):
    x: int = 1_000
    def f(self, a, /, b: str = 'q', *args, d=-1.5e3, **kw) -> list[int | None]:
        """Doc."""
        for i, (j, *k) in enumerate(z[1:, ::2]):
            if (n := len(k)) > 3 and not i or j is None:
                continue
            yield {**kw, "a": [q async for q in r if q], 1: {2, 3}}
        else:
            raise E from None
        try:
            with open(p) as f, g():
                lambda *, v=1j: (yield)
        except (A, B) as e:
            del self.x, k[0]
        finally:
            global G
            x @= y // 2 ** ~z
        match v:
            case {"a": [1, *_], **rest} if rest:
                pass
            case A(x=1) | None as m:
                return
async def g():
    try:
        assert t, b"\\x00"
    except* C:
        async with h as i: nonlocal_ = await i
'''
    assert of(text) == "21dd79771ee31346"


# Where Python 3.11 and 3.12, which parses them anew, build different trees.
FSTRINGS = r"""
f'{x=}', f'a{x=}b', f'{x = !r:>{w}}', f'{x:{y}}', f'{x:}', f'', f'' f'{x}', 'a' f'{x}' 'b' f'c'
f'{{x}}{y}', f'{x:%Y-%m-%d}', rf'\d{x}', f'{x:{y}{z}}', f'{(lambda: 1)()}', f'{x:>{10}.{2}}'
f'{x!s:5}{y=:3}', f'\N{DIGIT ONE}{x}', f'{x}' 'é', f'{x!r:}'
"""


def test_f_strings_are_pinned_too():
    assert of(FSTRINGS) == "db74ae7e81d17213"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=40))
def test_any_comment_is_silent_and_any_text_speaks(text):
    line = " ".join(text.split())
    assert of(f"x = 1  # {line}\n") == of("x = 1\n")
    assert (of(f"x = {text!r}") == of("x = 'other text'")) == (text == "other text")


@given(st.recursive(
    st.one_of(st.integers(0), st.text(max_size=5), st.booleans(), st.none(), st.binary(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner, inner)),
    max_leaves=8,
), st.data())  # fmt: skip
def test_literals_have_one_fingerprint_each(value, data):
    other = data.draw(st.sampled_from([value, [value], (value,), [value, value]]))
    assert (of(f"x = {value!r}") == of(f"x = {other!r}")) == (repr(value) == repr(other))


def test_a_file_that_is_not_python_is_named():
    with pytest.raises(InputError, match=r"x\.py: not Python"):
        fingerprint.of_code(b"x = (", "x.py")
    with pytest.raises(InputError, match=r"x\.py: not Python"):
        fingerprint.of_code(b"\xff\xfe", "x.py")


@pytest.mark.parametrize("bad", [b"", b"[]", b'{"cells": [1]}', b'{"cells": [{}]}', b'{"a": 1}'])
def test_a_file_that_is_not_a_notebook_is_named(bad):
    with pytest.raises(InputError, match=r"n\.ipynb: not a notebook"):
        fingerprint.of_notebook(bad, "n.ipynb")


def test_rows_are_calls_with_a_name_and_nothing_else():
    code = fingerprint.of_code(
        b"""
A = [E("one", 1), E(name="two", needs=N(packages=(P("inner"),)))]
B: tuple[E, ...] = check((E("three"),))
C = F("not a row")
D = [g(x), "text", ("tuple", 1)]
def f():
    return [E("inside a function")]
""",
        "t.py",
    )
    assert set(code.rows) == {"one", "two", "three"}
    assert "inner" in code.rows["two"].texts


@given(st.permutations(range(4)))
def test_rows_do_not_see_each_other(order):
    rows = [f"E('r{i}', {i})" for i in range(4)]
    first = fingerprint.of_code(f"T = [{', '.join(rows)}]".encode(), "t")
    second = fingerprint.of_code(f"T = [{', '.join(rows[i] for i in order)}]".encode(), "t")
    assert first.rows == second.rows
    assert first.frame == second.frame


def test_fingerprinting_does_not_change_the_tree():
    text = "T = [E('a')]\ns = f'a' f'{x}' ''\n'doc'\n"
    tree = ast.parse(text)
    before = ast.dump(tree)
    fingerprint.of_tree(tree)
    assert ast.dump(tree) == before

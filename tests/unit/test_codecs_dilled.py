from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmstore import codecs
from shmstore.errors import CorruptValue, StoreError, Unserializable
from tests.round_trip import mapped, round_trip

DILL = 5
ROOT = Path(__file__).parents[2]

READER = """
import pickle, sys
from shmstore import codecs
number, meta, payload = pickle.loads(sys.stdin.buffer.read())
value = codecs.decode(number, meta, memoryview(payload))
"""


def run(script: str, data: bytes = b"", path: Path | None = None) -> bytes:
    """Runs a script in a process of its own, as a file or as ``-c``."""
    script = textwrap.dedent(script)
    arguments = ["-c", script]
    if path is not None:
        path.write_text(script)
        arguments = [str(path)]
    done = subprocess.run(
        [sys.executable, *arguments],
        input=data,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


WRITER = """
    import abc, dataclasses, enum, functools, pickle, sys, typing
    import numpy as np
    from shmstore import codecs

    FACTOR = 3

    @dataclasses.dataclass
    class Point:
        x: object
        def times(self): return self.x * FACTOR

    class Base:
        def __init__(self): self.base = 1

    class Child(Base):
        def __init__(self):
            super().__init__()
            self.child = 2
        def again(self): return Child()

    class Level(enum.Enum):
        LOW = 1
        HIGH = 2
        OTHER = 2
        def double(self): return self.value * 2
        @classmethod
        def top(cls): return cls.HIGH
        def __str__(self): return "level " + self.name

    class Mode(enum.IntFlag):
        R = 1
        W = 2

    class Pair(typing.NamedTuple):
        left: int
        right: int = 5
        def total(self): return self.left + self.right

    Content = typing.TypeVar("Content", bound=object)

    class Box(typing.Generic[Content]):
        def __init__(self, content: Content): self.content = content

    class Shape(abc.ABC):
        @abc.abstractmethod
        def area(self): ...

    class Square(Shape):
        def area(self): return 4

    @functools.lru_cache
    def cached(n): return n + FACTOR

    def factorial(n): return 1 if n < 2 else n * factorial(n - 1)

    def send(value):
        e = codecs.encode(value)
        sys.stdout.buffer.write(pickle.dumps((e.codec, e.meta, b"".join(e.parts))))
"""

CASES = [
    ("Point(2)", "print(value.times())", "6"),
    ("[Point(2), Point(2)]",
     "print(type(value[0]) is type(value[1]), value[0] == value[1])", "True True"),
    ("Child()", "print(value.again().base, value.child, type(value).__name__)", "1 2 Child"),
    ("Level.HIGH", "print(value, value.double(), value.top() is value, type(value).OTHER is value)",
     "level HIGH 4 True True"),
    ("{Level.LOW: [Level.LOW]}", "print([k is v[0] for k, v in value.items()])", "[True]"),
    ("Mode.R | Mode.W", "print(int(value), value & type(value).R == type(value).R)", "3 True"),
    ("[Pair(1), Pair(1, 2)]", "print(*(p.total() for p in value), value[0]._fields)",
     "6 3 ('left', 'right')"),
    ("Pair", "print(value(1).total(), value.__annotations__)", None),
    ("factorial", "print(value(10))", "3628800"),
    ("lambda n: factorial(n) + FACTOR", "print(value(4))", "27"),
    ("Level", "print([str(m) for m in value])", "['level LOW', 'level HIGH']"),
    ("Box(3)", "print(value.content, type(value).__orig_bases__[0].__args__[0].__bound__)",
     "3 <class 'object'>"),
    ("[Content]", "print(value[0], value[0].__module__)", "~Content __main__"),
    ("Square()", "print(value.area(), type(value).__mro__[1].__name__)", "4 Shape"),
    ("[cached]", "print(value[0](1), value[0].cache_info().misses)", "4 1"),
    ("Point(1).times", "print(value())", "3"),
    ("Point(np.arange(1000))", "print(value.x.sum(), value.x.base is not None)", "499500 True"),
    ("(lambda k: lambda n: n + k)(7)", "print(value(1))", "8"),
]  # fmt: skip


@pytest.mark.parametrize(("made", "used", "printed"), CASES, ids=[case[0] for case in CASES])
def test_another_program_can_read_what_a_script_defines(
    made: str, used: str, printed: str | None
) -> None:
    stored = run(WRITER + f"    send({made})\n")
    assert pickle.loads(stored)[0] == DILL
    output = run(READER + used, stored).decode().strip()
    assert output == printed or (printed is None and output.startswith("6 {"))


@pytest.mark.parametrize("as_file", [True, False])
def test_within_one_script_the_very_classes_come_back(as_file: bool, tmp_path: Path) -> None:
    """Equality of dataclasses and isinstance need it."""
    script = (
        WRITER
        + """
    value = [Point({"a": Level.LOW}), Pair(1), Point, factorial]
    e = codecs.encode(value)
    back = codecs.decode(e.codec, e.meta, memoryview(b"".join(e.parts)))
    print(back == value, [type(b) is type(v) for b, v in zip(back, value)], back[2] is Point)
"""
    )
    output = run(script, path=tmp_path / "script.py" if as_file else None)
    assert output.decode().split() == ["True", "[True,", "True,", "True,", "True]", "True"]


SPAWN = (
    WRITER
    + """
    def child(queue):
        e = codecs.encode([Point(5), Level.HIGH])
        queue.put((e.codec, e.meta, b"".join(e.parts)))

    if __name__ == "__main__":
        import multiprocessing
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        stored = queue.get(timeout=60)
        process.join()
        codec, meta, payload = stored
        value = codecs.decode(codec, meta, memoryview(payload))
        sys.stdout.buffer.write(pickle.dumps((value == [Point(5), Level.HIGH], stored)))
"""
)


def test_a_spawned_child_and_its_parent_share_their_classes(tmp_path: Path) -> None:
    """There the script is __mp_main__, which no other program has."""
    same, stored = pickle.loads(run(SPAWN, path=tmp_path / "spawning.py"))
    assert same
    used = "print(value[0].times(), value[1].double())"
    assert run(READER + used, pickle.dumps(stored)).decode().strip() == "15 4"


def test_a_script_that_changed_reads_the_old_classes_by_value(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    stored = run(WRITER + "    send([Point(2)])\n", path=path)
    changed = READER + "class Point: pass\nprint(value[0].times())"
    assert run(changed, stored, path=path).decode().strip() == "6"


def test_functions_and_local_classes_come_back() -> None:
    offset = 5

    class Local:
        def __init__(self, value: Any) -> None:
            self.value = value

    back = round_trip([lambda x: x + offset, Local(np.arange(1000))])
    assert back.encoded.codec == DILL
    assert back.value[0](1) == 6
    assert type(back.value[1]).__qualname__ == Local.__qualname__
    assert back.holds(back.value[1].value)


@pytest.mark.parametrize(
    "what", [threading.Lock, lambda: io.FileIO("/dev/null"), lambda: (i for i in ())]
)
def test_a_closure_over_what_lives_in_one_process_is_refused(what: Any) -> None:
    held = what()
    try:
        with pytest.raises(Unserializable) as caught:
            codecs.encode(lambda: held)
        assert type(held).__name__ in caught.value.type_name
    finally:
        if hasattr(held, "close"):
            held.close()


class OnlyHere:
    """Can be pickled but never loaded."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __setstate__(self, state: Any) -> None:
        raise RuntimeError("it cannot be rebuilt")


def test_what_cannot_be_read_back_is_refused_at_put() -> None:
    with pytest.raises(Unserializable, match=r"cannot be read back.*cannot be rebuilt"):
        codecs.encode(OnlyHere(lambda: 1))


def test_an_enum_with_its_own_constructor_says_so() -> None:
    script = (
        WRITER
        + """
    class Planet(enum.Enum):
        EARTH = 1
        def __new__(cls, n):
            made = object.__new__(cls)
            made._value_ = n * 100
            return made
    try:
        codecs.encode([Planet.EARTH])
    except Exception as exc:
        print(type(exc).__name__, exc)
"""
    )
    assert run(script).decode().startswith("Unserializable")
    assert "__new__" in run(script).decode()


def test_explain_tells_which_run_is_viewed() -> None:
    class Local:
        def __init__(self, value: Any) -> None:
            self.value = value

    encoded = codecs.encode(Local(np.arange(1000)))
    notes = codecs.explain(encoded.codec, encoded.meta, encoded.nbytes)
    assert [note.copied for note in notes] == [False, True]


def test_damaged_meta_is_an_error_of_the_store() -> None:
    encoded = codecs.encode(lambda: 1)
    for end in range(len(encoded.meta)):
        with pytest.raises(StoreError):
            codecs.decode(DILL, encoded.meta[:end], mapped(encoded))
    with pytest.raises(CorruptValue):
        codecs.decode(DILL, encoded.meta[:16] + b"\xff" * 8 + encoded.meta[24:], mapped(encoded))

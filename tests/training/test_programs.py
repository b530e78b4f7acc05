"""How a program ends: mistakes in one line, and Ctrl-C at any time without a traceback."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from planet_lib.training import ending_in_one_line, run_program


@pytest.mark.parametrize(
    "kind", [ValueError, TypeError, OSError, ImportError, RuntimeError, OverflowError, MemoryError]
)
def test_a_mistake_ends_with_one_line(kind):
    with pytest.raises(SystemExit) as ended, ending_in_one_line("train.py"):
        raise kind("--seed must be at least 0,\n    got -1")
    assert ended.value.code == "train.py: --seed must be at least 0, got -1"


def test_a_mistake_without_a_message_is_told_by_its_kind():
    with pytest.raises(SystemExit) as ended, ending_in_one_line("train.py"):
        raise MemoryError
    assert ended.value.code == "train.py: MemoryError"


def test_where_ctrl_c_is_ignored_it_stays_so():
    script = """
import signal
from planet_lib.training import run_program
signal.signal(signal.SIGINT, signal.SIG_IGN)
run_program(lambda: signal.raise_signal(signal.SIGINT))
signal.raise_signal(signal.SIGINT)
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "went on\n"


def test_ctrl_c_ends_with_one_line():
    with pytest.raises(SystemExit) as ended, ending_in_one_line("train.py"):
        raise KeyboardInterrupt
    assert ended.value.code == "train.py: stopped"


def test_a_fault_of_the_program_and_its_own_exit_are_left_alone():
    with pytest.raises(KeyError), ending_in_one_line("train.py"):
        raise KeyError("a fault")
    with pytest.raises(SystemExit) as ended, ending_in_one_line("train.py"):
        sys.exit(3)
    assert ended.value.code == 3


@pytest.mark.parametrize(
    ("call", "name"), [(lambda: run_program(3), "main"), (ending_in_one_line(3).__enter__, "program")]
)
def test_what_cannot_be_is_named(call, name):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TypeError, match=f"^{name} must be"):
        call()
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_is_told_so():
    with ThreadPoolExecutor() as threads:
        error = threads.submit(run_program, print).exception()
    assert isinstance(error, ValueError)
    assert str(error).startswith("run_program must be called in the main thread, got another")


def test_ctrl_c_while_the_program_runs_is_caught_and_after_it_ends_the_process_in_silence():
    script = """
import signal
from planet_lib.training import ending_in_one_line, run_program

class Late:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)  # while Python ends

late = Late()
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell may have it ignored in the background

def main():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("caught", flush=True)

run_program(main)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "caught\n", "")

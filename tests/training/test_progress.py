import copy
import errno
import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from planet_lib.training import progress as module
from planet_lib.training.progress import Progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_gets_a_line_every_interval_and_not_more():
    clock, log = Clock(), io.StringIO()
    progress = Progress(stream=log, clock=clock, interval=30)
    with progress.phase("updates", total=100, unit="updates") as bar:
        for _ in range(100):
            clock.now += 1
            bar.update(1, loss=12.3456)
    assert log.getvalue().splitlines() == [
        "updates: 30/100 updates, 1 updates/s, 0:01:10 left, loss 12.35",
        "updates: 60/100 updates, 1 updates/s, 0:00:40 left, loss 12.35",
        "updates: 90/100 updates, 1 updates/s, 0:00:10 left, loss 12.35",
    ]


def test_the_interval_runs_on_across_short_phases():
    clock, log = Clock(), io.StringIO()
    progress = Progress(stream=log, clock=clock, interval=30)
    for n in range(7):
        with progress.phase(f"episode {n}", total=10) as bar:
            clock.now += 10
            bar.update(10)
    assert log.getvalue().splitlines() == ["episode 2: 10/10 steps, 1 steps/s", "episode 5: 10/10 steps, 1 steps/s"]


def test_the_whole_run_shows_its_speed_and_the_time_left_counted_from_where_it_was_resumed():
    clock, log = Clock(), io.StringIO()
    progress = Progress(100_000, done=40_000, stream=log, clock=clock, interval=0)
    clock.now += 20
    progress.advance(1000)
    with progress.phase("updates", total=2, unit="updates") as bar:
        bar.update()
    assert log.getvalue() == "updates: 1/2 updates | run: 41,000/100,000 steps (41%), 50 steps/s, 0:19:40 left\n"


def test_the_time_left_follows_the_present_speed_and_forgets_the_fast_start():
    clock, log = Clock(), io.StringIO()
    progress = Progress(100_000, stream=log, clock=clock, interval=0)
    for seconds in [1] * 5 + [100] * 30:
        clock.now += seconds
        progress.advance(1000)
    with progress.phase("updates", total=1) as bar:
        bar.update()
    assert "10 steps/s, 1:48:20 left" in log.getvalue()


def test_what_is_said_appears_at_once():
    log = io.StringIO()
    Progress(stream=log).say("evaluation: 512 ± 30")
    assert log.getvalue() == "evaluation: 512 ± 30\n"


def test_a_terminal_gets_live_bars_and_what_is_said_stands_above_them():
    pytest.importorskip("tqdm")
    terminal = Terminal()
    progress = Progress(10_000, done=5_000, stream=terminal)
    with progress.phase("updates", total=4, unit="updates") as bar:
        bar.update(4, loss=0.5)
        progress.say("evaluation: 512")
    progress.advance(5_000)
    progress.close()
    shown = terminal.getvalue()
    assert "updates: 100%" in shown
    assert "4/4" in shown
    assert "loss 0.5" in shown
    assert "evaluation: 512\n" in shown
    assert "run: 100%" in shown
    assert "10000/10000" in shown


def test_a_phase_that_fails_takes_its_bar_away_and_lets_the_error_through():
    tqdm = pytest.importorskip("tqdm").tqdm
    progress = Progress(stream=Terminal())

    def fail():
        with progress.phase("updates", total=4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert len(getattr(tqdm, "_instances", ())) == 0


class Broken(Terminal):
    """Fails at everything from its third write on."""

    def __init__(self):
        super().__init__()
        self.writes = 0

    def write(self, text):
        self.writes += 1
        if self.writes > 2:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        return super().write(text)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_stream_that_fails_is_left_alone_and_the_run_goes_on(is_terminal, monkeypatch):
    stream = Broken()
    monkeypatch.setattr(Terminal, "isatty", lambda self: is_terminal)
    progress = Progress(100, stream=stream, interval=0)
    for _ in range(5):
        with progress.phase("updates", total=4, unit="updates") as bar:
            bar.update(4, loss=0.5)
        progress.advance(20)
        progress.say("evaluation: 512")
    progress.close()
    assert stream.writes == 3


def test_without_any_stream_it_is_silent(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    progress = Progress(100)
    with progress.phase("updates", total=4) as bar:
        bar.update(4)
    progress.say("nobody hears it")


def test_a_letter_that_a_log_cannot_hold_costs_that_letter_alone(tmp_path):
    with open(tmp_path / "log", "w", encoding="ascii") as log:
        progress = Progress(stream=log)
        for line in ("one", "zwölf", "three"):
            progress.say(line)
    assert (tmp_path / "log").read_text() == "one\nzw?lf\nthree\n"


def test_a_reader_that_is_slow_once_gets_what_comes_later():
    class Slow(io.StringIO):
        def write(self, text):
            if "two" in text:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return super().write(text)

    stream = Slow()
    progress = Progress(stream=stream)
    for line in ("one", "two", "three"):
        progress.say(line)
    assert stream.getvalue() == "one\nthree\n"


def test_room_is_made_for_what_others_write_to_the_terminal():
    tqdm = pytest.importorskip("tqdm").tqdm
    terminal = Terminal()
    progress = Progress(10, stream=terminal)
    tqdm.write("a line of theirs", file=terminal)
    progress.close()
    assert "\ra line of theirs\n" in terminal.getvalue()
    other = tqdm(total=10, file=terminal)
    Progress(stream=terminal).say("a line of ours")
    other.close()
    assert "\ra line of ours\n" in terminal.getvalue()
    stream = module._Patient(terminal)
    assert copy.copy(stream) == stream == terminal
    assert hash(stream) == hash(terminal)


class Interrupting(Terminal):
    """Where Ctrl-C is pressed while a bar is drawn."""

    def write(self, text):
        if "50%" in text:
            raise KeyboardInterrupt
        return super().write(text)


def test_no_thread_waits_for_ever_after_ctrl_c_while_a_bar_is_drawn():
    lock = pytest.importorskip("tqdm").tqdm.get_lock()
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        Progress(4, done=2, stream=Interrupting())
    with Progress(stream=Interrupting()).phase("updates", total=4) as bar, pytest.raises(KeyboardInterrupt):
        draw_half(bar._bar)
    assert threading.active_count() == before
    with ThreadPoolExecutor() as threads:
        assert threads.submit(is_free, lock).result()


def draw_half(bar):
    bar.n = 2
    bar.refresh()


def is_free(lock):
    taken = [each for each in lock.locks if each.acquire(False)]
    for each in taken:
        each.release()
    return len(taken) == len(lock.locks)


def test_a_terminal_without_tqdm_gets_lines(monkeypatch):
    def missing(*args, **settings):
        raise ImportError

    monkeypatch.setattr(module, "require", missing)
    terminal = Terminal()
    with Progress(stream=terminal, interval=0, clock=lambda: 0.0).phase("updates", total=2, unit="updates") as bar:
        bar.update(2, loss=1.0)
    assert terminal.getvalue() == "updates: 2/2 updates, loss 1\n"


def test_a_terminal_of_no_size_gets_lines(monkeypatch):
    monkeypatch.setattr(Terminal, "fileno", lambda self: 2)
    monkeypatch.setattr(os, "get_terminal_size", lambda descriptor: os.terminal_size((0, 0)))
    terminal = Terminal()
    with Progress(stream=terminal, interval=0, clock=lambda: 0.0).phase("updates", total=2, unit="updates") as bar:
        bar.update(2, loss=1.0)
    assert terminal.getvalue() == "updates: 2/2 updates, loss 1\n"


def test_a_run_of_no_length_is_refused():
    with pytest.raises(ValueError, match="total must be greater than 0, got 0"):
        Progress(0, stream=io.StringIO())

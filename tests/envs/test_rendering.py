import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest

from planet_lib.envs import make_env, rendering, select_backend


@pytest.fixture
def machine(monkeypatch):
    """A Linux machine without display, MUJOCO_GL and mujoco; call it with the backends that work there."""
    for name in ("MUJOCO_GL", "DISPLAY", "DISABLE_RENDER_THREAD_OFFLOADING"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    tried = []

    def working(*names):
        monkeypatch.setattr(rendering, "probe_backend", lambda name: tried.append(name) or name in names)
        return tried

    working()
    return working


def test_egl_comes_first_and_nothing_else_is_tried(machine):
    tried = machine("egl", "osmesa")
    assert select_backend() == "egl"
    assert os.environ["MUJOCO_GL"] == "egl"
    assert "DISABLE_RENDER_THREAD_OFFLOADING" not in os.environ
    assert select_backend() == "egl"
    assert tried == ["egl"]


def test_osmesa_comes_second_and_draws_in_the_calling_thread(machine):
    tried = machine("osmesa")
    assert select_backend() == "osmesa"
    assert tried == ["egl", "osmesa"]
    assert os.environ["DISABLE_RENDER_THREAD_OFFLOADING"] == "1"


def test_glfw_is_tried_only_with_a_display(machine, monkeypatch):
    tried = machine("glfw")
    with pytest.raises(RuntimeError, match="none of egl, osmesa works"):
        select_backend()
    monkeypatch.setenv("DISPLAY", ":0")
    tried.clear()
    assert select_backend() == "glfw"
    assert tried == ["egl", "osmesa", "glfw"]


def test_a_variable_that_is_set_is_respected_without_trying(machine, monkeypatch):
    tried = machine("egl")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert select_backend() == "osmesa"
    assert tried == []
    assert os.environ["DISABLE_RENDER_THREAD_OFFLOADING"] == "1"


def test_an_empty_variable_counts_as_unset(machine, monkeypatch):
    machine("egl")
    monkeypatch.setenv("MUJOCO_GL", "")
    assert select_backend() == "egl"


def test_nothing_is_changed_once_mujoco_is_imported(machine, monkeypatch):
    tried = machine("egl")
    monkeypatch.setitem(sys.modules, "mujoco", SimpleNamespace())
    assert select_backend() == "default"
    assert tried == []
    assert "MUJOCO_GL" not in os.environ


def test_systems_with_one_driver_need_no_choice(machine, monkeypatch):
    tried = machine("egl")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert select_backend() == "default"
    assert tried == []


def test_without_gl_its_pixels_say_what_to_install_and_change_nothing(machine):
    machine()
    message = (
        r"^MuJoCo cannot render pixels here: none of egl, osmesa works; run apt-get install -y "
        r'--no-install-recommends libegl1 libgl1 \(or libosmesa6\), or use renderer="rays" or obs="state"$'
    )
    with pytest.raises(RuntimeError, match=message):
        select_backend()
    with pytest.raises(RuntimeError, match=message):
        make_env("dmc:cartpole-balance", renderer="gl")
    with pytest.raises(RuntimeError, match=message):
        make_env("gym:InvertedPendulum-v5", renderer="gl")
    assert "MUJOCO_GL" not in os.environ


def test_without_gl_states_go_on_with_drawing_disabled(machine):
    machine()
    assert select_backend(required=False) == "disabled"
    assert os.environ["MUJOCO_GL"] == "disabled"
    with pytest.raises(RuntimeError, match=r"MUJOCO_GL=disabled \(unset it once GL is there\); run apt-get install"):
        select_backend()


@pytest.mark.parametrize(
    ("renderer", "variable", "draws"),
    [
        ("auto", "egl", "gl"),
        ("auto", None, "gl"),
        ("auto", "disabled", "rays"),
        ("auto", " OFF ", "rays"),
        ("gl", "disabled", "gl"),
        ("rays", "egl", "rays"),
    ],
)
def test_rays_draw_where_asked_for_or_where_gl_is_disabled(machine, monkeypatch, renderer, variable, draws):
    if variable is not None:
        monkeypatch.setenv("MUJOCO_GL", variable)
    assert rendering.resolve_renderer(renderer) == draws


def test_without_gl_the_choice_of_a_renderer_ends_with_rays(machine):
    machine()
    select_backend(required=False)
    assert rendering.resolve_renderer("auto") == "rays"


def test_rays_announce_themselves_once_with_the_reason_and_the_remedy(machine, monkeypatch):
    monkeypatch.setattr(rendering, "_announced", set())
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    message = (
        r"drawn by planet_lib's ray caster, since OpenGL is not available \(MUJOCO_GL=disabled\)\. They differ "
        r"slightly from OpenGL's: train and evaluate with the same renderer\. For OpenGL unset MUJOCO_GL and run "
        r'apt-get install -y --no-install-recommends libegl1 libgl1 \(or libosmesa6\); renderer="rays" silences this$'
    )
    with pytest.warns(rendering.RendererWarning, match=message):
        rendering.announce_rays()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rendering.announce_rays()
    assert caught == []


def test_a_probe_tells_what_works_from_what_does_not(gl):
    assert rendering.probe_backend(os.environ.get("MUJOCO_GL", "egl"))
    assert not rendering.probe_backend("no such backend")


def test_a_driver_that_hangs_counts_as_absent(monkeypatch):
    def hang(*args, **settings):
        raise subprocess.TimeoutExpired(args, settings["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    assert not rendering.probe_backend("egl")


def model(**quality):
    settings = {"shadowsize": 2048, "numslices": 28, "numstacks": 16, "numquads": 4, "offsamples": 4, **quality}
    return SimpleNamespace(
        vis=SimpleNamespace(quality=SimpleNamespace(**settings), global_=SimpleNamespace(offwidth=640, offheight=480))
    )


def values(model):
    quality, buffer = model.vis.quality, model.vis.global_
    levels = (quality.shadowsize, quality.numslices, quality.numstacks, quality.numquads, quality.offsamples)
    return levels, (buffer.offheight, buffer.offwidth)


@pytest.mark.parametrize(
    ("quality", "levels", "buffer"),
    [
        ("tuned", (256, 12, 8, 1, 4), (48, 1000)),
        ("fast", (256, 12, 8, 1, 0), (48, 1000)),
        ("suite", (2048, 28, 16, 4, 4), (480, 1000)),
    ],
)
def test_each_quality_sets_its_levels_and_a_buffer_that_holds_the_image(quality, levels, buffer, monkeypatch):
    monkeypatch.setenv("LP_NUM_THREADS", "3")
    tuned = model()
    rendering.tune(tuned, image_size=(48, 1000), quality=quality)
    assert values(tuned) == (levels, buffer)
    assert os.environ["LP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(("size", "shadows"), [((16, 16), 128), ((64, 64), 128), ((64, 100), 200), ((200, 64), 256)])
def test_the_shadow_map_grows_with_the_image(size, shadows):
    tuned = model()
    rendering.tune(tuned, image_size=size, quality="tuned")
    assert values(tuned)[0][0] == shadows


def test_tuning_never_raises_a_level():
    tuned = model(shadowsize=0, numslices=6)
    rendering.tune(tuned, image_size=(64, 64), quality="tuned")
    assert values(tuned)[0] == (0, 6, 8, 1, 4)


def test_software_rendering_stays_in_the_calling_thread_unless_told_otherwise(monkeypatch):
    monkeypatch.setenv("LP_NUM_THREADS", "to be restored")
    monkeypatch.delenv("LP_NUM_THREADS")
    rendering.tune(model(), image_size=(64, 64), quality="suite")
    assert "LP_NUM_THREADS" not in os.environ
    rendering.tune(model(), image_size=(64, 64), quality="tuned")
    assert os.environ["LP_NUM_THREADS"] == "0"


@pytest.mark.parametrize(
    ("begin", "loaded"), [("", "True"), ("import mujoco; ", "False"), ("rendering.draw_only(); ", "False")]
)
def test_torchs_compiler_is_loaded_before_opengl_or_not_at_all(tmp_path, begin, loaded):
    (tmp_path / "triton.py").write_text(
        'import sys\nfirst = not {"mujoco", "OpenGL", "dm_control"} & sys.modules.keys()\n'
    )
    script = (
        "import sys; from planet_lib.envs import make_env, rendering\n"
        f"{begin}make_env('dmc:cartpole-balance', obs='state').close()\n"
        "print('triton' in sys.modules and sys.modules['triton'].first)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == loaded

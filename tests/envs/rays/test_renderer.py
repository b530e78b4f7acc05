import numpy as np
import pytest

from planet_lib.envs.rays import RayRenderer  # first, since it chooses how MuJoCo renders

import mujoco  # isort: skip

CAMERA = "<camera name='front' pos='0 -5 0' xyaxes='1 0 0 0 0 1' fovy='40'/>"
TOP = "<camera name='top' pos='0 0 5' fovy='40'/>"
DARK = "<visual><headlight ambient='{0} {0} {0}' diffuse='{1} {1} {1}' specular='0 0 0'/></visual>"


def scene(world, *, ambient=1.0, diffuse=0.0, rest="", camera="front", size=(64, 64), **settings):
    visual = DARK.format(ambient, diffuse)
    model = mujoco.MjModel.from_xml_string(
        f"<mujoco>{visual}{rest}<worldbody>{CAMERA}{TOP}{world}</worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return RayRenderer(model, data, *size, camera, **settings)


def test_a_ball_covers_its_circle_in_its_own_colour():
    frame = scene("<geom size='1' rgba='1 .5 0 1'/>").render()
    assert frame.dtype == np.uint8
    assert frame[32, 32].tolist() == [255, 128, 0]
    assert frame[0, 0].tolist() == [0, 0, 0]
    # Seen from 5 away, a ball of radius 1 fills a cone of tangent 1 / sqrt(24) of the picture's tan 20.
    radius = 32 / np.sqrt(24) / np.tan(np.radians(20))
    assert (frame[..., 0] / 255).sum() == pytest.approx(np.pi * radius**2, rel=0.005)


def test_edges_are_mixed_unless_told_otherwise():
    ball = "<geom size='1' rgba='1 1 1 1'/>"
    assert set(np.unique(scene(ball).render())) == {0, 64, 128, 191, 255}
    assert set(np.unique(scene(ball, antialias=False).render())) == {0, 255}


def test_up_is_up_and_right_is_right():
    frame = scene("<geom size='.3' pos='1 0 .5' rgba='1 1 1 1'/>").render()
    rows, columns = np.nonzero(frame[..., 0])
    pixel = 2 * np.tan(np.radians(20)) * 5 / 64
    assert columns.mean() == pytest.approx(31.5 + 1 / pixel, abs=0.5)
    assert rows.mean() == pytest.approx(31.5 - 0.5 / pixel, abs=0.5)


def test_height_and_width_are_free_and_pixels_stay_square():
    ball = "<geom size='1' rgba='1 1 1 1'/>"
    wide = scene(ball, size=(48, 80)).render()
    assert wide.shape == (48, 80, 3)
    rows, columns = np.nonzero(wide[..., 0])
    assert np.ptp(rows) == np.ptp(columns)
    assert np.array_equal(wide[:, 16:64], scene(ball, size=(48, 48)).render())


def test_cameras_go_by_index_name_free_and_object():
    world = "<geom size='1 .5 .2' type='box' rgba='1 1 1 1'/>"
    front, top, free = (scene(world, camera=camera).render() for camera in ("front", "top", -1))
    assert np.array_equal(front, scene(world, camera=0).render())
    assert np.array_equal(top, scene(world, camera=1).render())
    camera = mujoco.MjvCamera()
    camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 1
    assert np.array_equal(top, scene(world, camera=camera).render())
    assert len({front.tobytes(), top.tobytes(), free.tobytes()}) == 3
    assert free.max() == 255


def test_a_tracking_camera_follows_its_body():
    body = "<body pos='{} 0 0'><freejoint/><geom size='.4' rgba='1 1 1 1'/>{}</body>"
    follower = "<camera name='mine' mode='trackcom' pos='0 -5 0' xyaxes='1 0 0 0 0 1'/>"
    at_home, away = (scene(body.format(place, follower), camera="mine").render() for place in (0, 7))
    assert at_home.max() == 255
    assert np.array_equal(at_home, away)


def test_an_orthographic_camera_shows_far_things_as_large_as_near_ones():
    world = (
        "<camera name='map' pos='0 -9 0' xyaxes='1 0 0 0 0 1' projection='orthographic' fovy='4'/>"
        "<geom size='.5' pos='-1 -3 0' rgba='1 1 1 1'/><geom size='.5' pos='1 3 0' rgba='1 1 1 1'/>"
    )
    frame = scene(world, camera="map").render()[..., 0] / 255
    assert frame[:, :32].sum() == pytest.approx(np.pi * 8**2, rel=0.01)
    assert frame[:, 32:].sum() == pytest.approx(np.pi * 8**2, rel=0.01)


def test_the_nearer_geom_hides_the_other():
    world = "<geom name='far' size='1' pos='0 1 0' rgba='1 0 0 1'/><geom size='.3' pos='0 -1 0' rgba='0 1 0 1'/>"
    renderer = scene(world)
    assert renderer.render()[32, 32].tolist() == [0, 255, 0]
    ids = renderer.geom_ids()
    assert ids[32, 32].tolist() == [1] * 4
    assert ids[32, 22].tolist() == [0] * 4
    assert ids[0, 0].tolist() == [-1] * 4


def test_a_transparent_geom_is_drawn_twice_over_what_is_behind_it():
    behind = "<geom type='box' size='2 .1 2' pos='0 1 0' rgba='1 0 0 1'/>"
    frame = scene(f"{behind}<geom size='.5' rgba='0 1 0 .5'/>").render()
    assert frame[32, 32].tolist() == [64, 191, 0]
    assert frame[5, 5].tolist() == [255, 0, 0]


def test_a_site_is_drawn_and_an_invisible_geom_is_not():
    frame = scene("<site size='.5' rgba='0 0 1 1'/><geom size='2' rgba='1 1 1 0'/>").render()
    assert frame[32, 32].tolist() == [0, 0, 255]
    assert frame[20, 20].tolist() == [0, 0, 0]


def test_a_camera_inside_a_geom_sees_out_of_it():
    frame = scene("<geom size='.5' pos='0 -5 0' rgba='1 0 0 1'/><geom size='1' rgba='0 1 0 1'/>").render()
    assert frame[32, 32].tolist() == [0, 255, 0]


@pytest.mark.parametrize(("width", "seen"), [(0.5, True), (0, False)])
def test_a_hair_is_drawn_half_a_pixel_wide_unless_told_otherwise(width, seen):
    world = "<geom type='capsule' fromto='-1.5 0 -.4 1.4 0 1.3' size='.0005' rgba='1 1 1 1'/>"
    columns = scene(world, min_width=width).render()[..., 0].max(axis=0)[5:55]
    assert (columns > 0).all() == seen


FLOOR = "<geom type='plane' size='3 3 .1' rgba='1 1 1 1' material='{}'/>"
LAMP = "<light directional='true' dir='0 0 -1' pos='0 0 4' diffuse='.5 .5 .5' specular='0 0 0' castshadow='{}'/>"
MATTE = "<asset><material name='matte' specular='0'/><material name='glass' specular='0' reflectance='.5'/></asset>"


@pytest.mark.parametrize(("casts", "shade"), [("true", 51), ("false", 51 + 128)])
def test_a_ball_throws_its_shadow_on_the_floor_if_the_light_casts_any(casts, shade):
    world = FLOOR.format("matte") + LAMP.format(casts) + "<geom size='.4' pos='1 0 1' rgba='1 0 0 1'/>"
    world += "<camera name='slant' pos='-3 0 1' xyaxes='0 -1 0 .3 0 1'/>"
    renderer = scene(world, ambient=0.2, rest=MATTE, camera="slant")
    frame, ids = renderer.render(), renderer.geom_ids()
    origins, directions = renderer.rays()
    steps = -origins[..., 2] / directions[..., 2]
    places = (origins + steps[..., None] * directions).mean(axis=2)
    on_floor = (ids == 0).all(axis=2)
    distance = np.hypot(places[..., 0] - 1, places[..., 1])
    assert (on_floor & (distance < 0.3)).sum() > 10
    assert np.abs(frame[on_floor & (distance < 0.3)].astype(int) - shade).max() <= 1
    assert np.abs(frame[on_floor & (distance > 0.5) & (distance < 2)].astype(int) - (51 + 128)).max() <= 1


def test_a_mirror_adds_the_dimmed_image_of_what_stands_on_it():
    world = FLOOR + "<geom type='box' size='.5 .5 .5' pos='0 2 .5' rgba='0 0 1 1'/>"
    world += "<camera name='low' pos='0 -2 1' xyaxes='1 0 0 0 .2 1'/>"
    plain, mirror = (
        scene(world.format(name), ambient=0.2, rest=MATTE, camera="low").render().astype(int)
        for name in ("matte", "glass")
    )
    added = mirror - plain
    # The box at 2 m is seen from 1 m above the floor; its image hangs below it, down to 1 m under the floor.
    assert added[..., :2].max() == 0
    assert added[..., 2].max() == pytest.approx(0.5 * 0.2 * 255, abs=1)
    rows, columns = np.nonzero(added[..., 2])
    base = np.nonzero(plain[..., 2] - plain[..., 0])[0].max()
    assert base <= rows.min() <= base + 1
    assert abs(columns.mean() - 31.5) < 0.5


def test_a_mirror_image_is_as_far_below_the_floor_as_the_thing_is_above():
    world = FLOOR.format("glass") + "<geom size='.2' pos='.5 2 .6' rgba='1 0 0 1'/>"
    world += "<camera name='level' pos='0 -2 1' xyaxes='1 0 0 0 0 1' fovy='60'/>"
    plain = world.replace("glass", "matte")
    mirror, plain = (
        scene(each, rest=MATTE, ambient=0.2, camera="level").render().astype(int) for each in (world, plain)
    )
    rows, columns = np.nonzero((mirror - plain)[..., 0])
    pixel = 2 * np.tan(np.radians(30)) / 64
    assert rows.mean() == pytest.approx(31.5 + (1 + 0.6) / 4 / pixel, abs=0.5)
    assert columns.mean() == pytest.approx(31.5 + 0.5 / 4 / pixel, abs=0.5)


def test_a_plane_seen_from_behind_is_drawn_thinly():
    plane = "<geom type='plane' size='2 2 .1' xyaxes='1 0 0 0 0 1' rgba='1 1 1 1'/>"
    assert scene(plane).render()[32, 32, 0] == 255
    behind = plane.replace("0 0 1'", "0 0 -1'")
    assert scene(behind).render()[32, 32, 0] == round(255 * (1 - 0.7**2))


def test_the_edge_between_two_faces_of_a_box_is_mixed():
    pixel = 2 * np.tan(np.radians(20)) * 4 / 64
    light = "<light directional='true' dir='1 1 0' pos='-4 -4 0' diffuse='1 1 1' specular='0 0 0' castshadow='false'/>"
    box = f"<geom type='box' size='.7071 .7071 1' pos='{pixel / 2} 0 0' euler='0 0 45' rgba='1 1 1 1'/>"
    row = scene(light + box, ambient=0.0).render()[32, 28:38, 0].astype(int)
    assert (row[:4] == 255).all()
    assert (row[-4:] == 0).all()
    assert 60 < row[4] < 195


@pytest.mark.parametrize(
    ("axes", "face"),
    [
        ("0 -1 0 0 0 1", 0),
        ("0 1 0 0 0 1", 1),
        ("1 0 0 0 -1 0", 2),
        ("1 0 0 0 1 0", 3),
        ("-1 0 0 0 0 1", 4),
        ("1 0 0 0 0 1", 5),
    ],
)
def test_the_sky_turns_with_the_camera(axes, face):
    sky = "<asset><texture type='skybox' builtin='flat' width='8' height='48'/></asset>"
    model = mujoco.MjModel.from_xml_string(
        f"<mujoco>{sky}<worldbody><camera name='c' xyaxes='{axes}' fovy='40'/></worldbody></mujoco>"
    )
    model.tex_data[:] = np.repeat(np.arange(6) * 10, 8 * 8 * 3)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    assert np.unique(RayRenderer(model, data, 16, 16, "c").render()).tolist() == [10 * face]


def test_haze_lies_over_the_horizon_of_an_endless_plane():
    assets = "<asset><texture type='skybox' builtin='flat' rgb1='0 0 0' rgb2='0 0 0' width='8' height='48'/></asset>"
    haze = "<visual><rgba haze='1 0 0 1'/><map haze='{}'/></visual>"
    world = "<geom type='plane' size='0 0 .1' rgba='0 0 1 1'/><camera name='low' pos='0 0 1' xyaxes='1 0 0 0 0 1'/>"
    rows = scene(world, rest=assets + haze.format(0.3), camera="low").render()[:, 32].astype(int)
    assert rows[:32, 0].max() == 0
    assert rows[32:36, 0].max() > 60
    assert rows[50:, 0].max() == 0
    assert scene(world, rest=assets + haze.format(0), camera="low").render()[..., 0].max() == 0


def test_a_plane_is_lit_at_mujocos_vertices():
    renderer = scene("<geom type='plane' size='1 0 .3'/>")
    columns, rows = renderer._scene.plane_grid(0)
    assert columns == pytest.approx([-1, -0.6, 0, 0.6, 1])
    assert (len(rows), rows[100]) == (201, 0)
    assert np.ptp(np.diff(rows)) < 1e-9


def test_the_sky_is_seen_where_nothing_is_and_is_blue_above():
    sky = "<asset><texture type='skybox' builtin='gradient' rgb1='0 0 1' rgb2='0 0 0' width='64' height='384'/></asset>"
    frame = scene("<geom size='.3' rgba='1 1 1 1'/>", rest=sky).render().astype(int)
    assert frame[32, 32].tolist() == [255, 255, 255]
    assert frame[0, 5, 2] > frame[63, 5, 2] + 20
    assert frame[:, 5, :2].max() == 0


def test_a_checked_floor_starts_at_its_corner():
    checks = (
        "<asset><texture name='c' type='2d' builtin='checker' rgb1='1 0 0' rgb2='0 1 0' width='64' height='64'/>"
        "<material name='c' texture='c' texrepeat='1 1' texuniform='true' specular='0'/></asset>"
    )
    frame = scene(
        "<geom type='plane' size='.75 .75 .1' material='c' rgba='1 1 1 1'/>", rest=checks, camera="top"
    ).render()
    pixel = 2 * np.tan(np.radians(20)) * 5 / 64
    row = frame[round(31.5 + 0.5 / pixel)].astype(int)
    seam = 31.5 + 0.25 / pixel
    left, right = row[int(seam) - 5], row[int(seam) + 5]
    assert {tuple(left), tuple(right)} == {(255, 0, 0), (0, 255, 0)}
    inside = slice(round(31.5 - 0.7 / pixel), int(seam) - 2)
    assert (row[inside] == left).all()


def test_meshes_and_height_fields_are_drawn():
    assets = (
        "<asset><mesh name='m' vertex='-.5 -.5 -.5 .5 -.5 -.5 0 .5 -.5 0 0 .5'/>"
        "<hfield name='h' nrow='3' ncol='3' size='1 1 .5 .1' elevation='0 0 0 0 1 0 0 0 0'/></asset>"
    )
    mesh = "<geom type='mesh' mesh='m' rgba='1 0 0 1'/>"
    field = "<geom type='hfield' hfield='h' pos='0 0 -1.2' rgba='0 1 0 1'/>"
    renderer = scene(mesh + field, rest=assets, ambient=0.5, diffuse=0.5)
    frame, ids = renderer.render(), renderer.geom_ids()
    assert (frame[ids[..., 0] == 0, 0] > 0).sum() > 50
    assert (frame[ids[..., 0] == 1, 1] > 0).sum() > 50
    # From above, each side of the hill has the brightness of its own slope.
    above = scene(field, rest=assets, ambient=0.0, diffuse=1.0, camera="top").render()
    assert above[32, 25, 1] == pytest.approx(255 / np.sqrt(1 + 0.5**2), abs=2)


def test_a_model_with_a_skin_or_flex_is_refused():
    flex = "<flexcomp name='f' type='grid' count='3 3 1' spacing='.1 .1 .1' dim='2' mass='1' radius='.01'/>"
    with pytest.raises(
        ValueError, match=r'draws no skins and no flexes, and the model has 0 and 1; .* \(renderer="gl"\)'
    ):
        scene(flex)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"camera": "nobody"}, "camera must be -1 to 1, one of front, top, got 'nobody'"),
        ({"camera": 2}, "camera must be -1 to 1, one of front, top, got 2"),
        ({"camera": True}, "camera must be -1 to 1, one of front, top, got True"),
        ({"size": (0, 64)}, "height and width must be at least 1 and min_width at least 0, got 0, 64 and 0.5"),
        ({"min_width": -1}, "min_width at least 0, got 64, 64 and -1"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        scene("<geom size='1'/>", **settings)


def test_a_picture_follows_the_simulation_and_the_same_state_gives_the_same_picture():
    renderer = scene("<body><joint type='slide' axis='1 0 0'/><geom size='.3' rgba='1 1 1 1'/></body>")
    start = renderer.render()
    data = renderer._tracer._data
    data.qpos[0] = 1
    mujoco.mj_forward(renderer._tracer._model, data)
    moved = renderer.render()
    assert np.nonzero(moved[..., 0])[1].min() > np.nonzero(start[..., 0])[1].max()
    data.qpos[0] = 0
    mujoco.mj_forward(renderer._tracer._model, data)
    assert np.array_equal(renderer.render(), start)

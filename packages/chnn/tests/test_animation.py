"""Moving pictures open again with the frames they should have, show what moves where it is, and say what is wrong."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from chnn.animation import Camera, animate, snapshot
from chnn.animation.render import BACKGROUND, Painter
from chnn.animation.scene import coil, frames, posed, scene_of
from chnn.mechanics import Assembly, box, disk, rod
from chnn.systems import (
    SYSTEMS,
    Bead,
    ChainPendulum,
    CoupledPendulum,
    Gyroscope,
    MagnetPendulum,
    System,
    system_by_name,
)
from lie.run import UserError
from PIL import Image, ImageColor


def motion(system, count=5, dt=0.04, seed=0):
    """States along a curve that need not be a motion: drawing asks for no more, and no kernel is compiled."""
    z0 = system.sample(1, generator=torch.Generator().manual_seed(seed))[0]
    t = dt * torch.arange(count, dtype=torch.float64)
    x, v = z0
    path = x + t[:, None, None] * v
    return torch.stack([path, v.expand_as(path)], 1), t


def small(name):
    return system_by_name(name, **({"links": 8} if name == "rope" else {}))


class Page(HTMLParser):
    """Scripts of a page, and every address in it."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.addresses, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append([dict(attrs), ""])
        self.addresses += [value for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1][1] += data

    @property
    def scene(self):
        return json.loads(self.scripts[0][1])


def unpacked(text):
    return np.frombuffer(base64.b64decode(text), dtype="<f4")


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_draws(tmp_path, name):
    system = small(name)
    z, t = motion(system)
    animate(system, z, t, tmp_path / "a.gif", size=64, progress=False)
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 5 and film.size == (64, 64) and film.info["duration"] == 40 and film.info["loop"] == 0
        first = np.asarray(film.convert("RGB"))
        film.seek(4)
        assert (first != np.asarray(film.convert("RGB"))).any()  # it moves
    animate(system, z, t, tmp_path / "a.html", progress=False)
    text = (tmp_path / "a.html").read_text()
    page = Page(text)
    scene = page.scene
    assert page.addresses == [] and not re.search(r"https?://|@import|url\(", text)  # nothing from elsewhere
    assert scene["name"] == name and scene["frames"] == 5
    places = unpacked(scene["x"]).reshape(5, scene["places"], scene["dim"])
    # The points come first among the places; float32 holds 7 digits.
    np.testing.assert_allclose(places[:, : system.num_points], z[:, 0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(unpacked(scene["t"]), t, atol=1e-6)
    assert scene["meshes"] or scene["dots"] or scene["bars"]


def test_mp4_opens_again(tmp_path):
    library = pytest.importorskip("imageio_ffmpeg")
    system = ChainPendulum(2)
    z, t = motion(system, 9)
    animate(system, z, t, tmp_path / "a.mp4", size=63, progress=False)
    count, seconds = library.count_frames_and_secs(str(tmp_path / "a.mp4"))
    assert count == 9 and abs(seconds - 9 / 25) < 0.05
    assert next(library.read_frames(str(tmp_path / "a.mp4")))["size"] == (64, 64)  # sides of a video are even


PLAY = """
const fs = require("fs"), text = fs.readFileSync(process.argv[2], "utf8");
const [scene, code] = [...text.matchAll(/<script[^>]*>([\\s\\S]*?)<\\/script>/g)].map(m => m[1]);
let calls = 0, bad = 0, next;
const look = a => { calls++; for (const v of a) if (typeof v === "number" && !isFinite(v)) bad++; };
const pen = new Proxy({}, {set: (t, k, v) => (t[k] = v, true), get: (t, k) => (...a) => {
  look(a); return {addColorStop() {}}; }});
const elements = {}, element = id => elements[id] ??= {clientWidth: 400, clientHeight: 300, checked: true, style: {},
  value: id === "speed" ? "1" : "0", textContent: id === "scene" ? scene : "", getContext: () => pen,
  addEventListener(n, f) { this[n] = f; }, setPointerCapture() {}};
global.document = {getElementById: element};
global.window = {devicePixelRatio: 2, addEventListener() {}};
global.requestAnimationFrame = f => { next = f; };
new Function(code)();
const clocks = [], buttons = [];
const step = time => { next(time); clocks.push(elements.clock.textContent); };
step(0); step(41); step(82);
elements.canvas.pointerdown({clientX: 0, clientY: 0}); elements.canvas.pointermove({clientX: 50, clientY: 20});
elements.canvas.wheel({deltaY: -100, preventDefault() {}});
elements.slider.value = "3"; elements.slider.oninput(); step(120); step(200);
elements.play.onclick(); step(240); step(281);
console.log(JSON.stringify({calls, bad, clocks, play: elements.play.textContent, max: elements.slider.max}));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="runs the page's script in node")
@pytest.mark.parametrize("name", ["coupled-pendulum", "gyroscope", "four-bar", "magnet-pendulum"])
def test_the_page_plays(tmp_path, name):
    system = small(name)
    z, t = motion(system)
    animate(system, z, t, tmp_path / "a.html", truth=z + 0.01, progress=False)
    (tmp_path / "play.js").write_text(PLAY)
    command = ["node", str(tmp_path / "play.js"), str(tmp_path / "a.html")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    shown = json.loads(ended.stdout)
    assert shown["calls"] > 100 and shown["bad"] == 0 and shown["max"] == 4 and shown["play"] == "Pause"
    # Plays in real time, stays where the slider is put, plays on from there.
    assert shown["clocks"] == [f"t = {s:.2f} s" for s in (0, 0.04, 0.08, 0.12, 0.12, 0.12, 0.16)]


def test_frames_between_states_follow_positions_and_velocities():
    t = np.array([0.0, 0.1, 0.3])
    z = np.stack([t**3 - t, 3 * t**2 - 1], 1)[:, :, None, None]  # a cubic is met exactly
    x, shown = frames(z, t, fps=50, max_frames=1000)
    np.testing.assert_allclose(shown, np.arange(16) / 50, atol=1e-12)
    np.testing.assert_allclose(x[:, 0, 0], shown**3 - shown, atol=1e-12)
    assert len(frames(z, t, fps=50, max_frames=7)[0]) == 7
    np.testing.assert_allclose(frames(z, t, fps=50, max_frames=99, speed=2.0)[1], np.arange(8) / 25, atol=1e-12)


def test_a_bob_is_drawn_where_it_is():
    system = ChainPendulum(links=1)
    z = system.from_angles(torch.tensor([[0.7], [0.0]], dtype=torch.float64))
    scene = scene_of(system, z[:1].numpy())
    painter = Painter(scene, 200)
    places = scene.places(z[0].numpy())
    pixels = np.asarray(painter.picture(places, places[None])).astype(int)
    red = np.abs(pixels - ImageColor.getrgb(scene.colors["dots"][0])).sum(-1) < 60
    row, column = (where.mean() for where in np.nonzero(red))
    # The anchor and the bob span the picture of 200 pixels at 0.84: metres to pixels, down for up.
    scale = 0.84 * 200 / scene.size
    x, y = 100 + scale * (np.array([np.sin(0.7), np.cos(0.7)]) - [scene.centre[0], -scene.centre[1]])
    # The highlight shifts the centre of the colour by less than the bob's radius, of 6 pixels.
    assert abs(column - x) < 3 and abs(row - y) < 3


def test_the_camera_sees_a_right_handed_space():
    matrix = Camera(azimuth=-60, elevation=18).matrix()
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1.0) and matrix[1, 2] > 0.9  # up is up
    np.testing.assert_allclose(Camera(-90, 0).matrix() @ [1.0, 0, 0], [1.0, 0, 0], atol=1e-12)  # x to the right


def test_what_is_drawn_of_each_system():
    def scene(system):
        return scene_of(system, motion(system)[0][:, 0].numpy())

    coupled = scene(CoupledPendulum(3))
    assert len(coupled.springs) == 2 and len(coupled.rods) == 3 and len(coupled.anchors) == 3 == len(coupled.dots)
    beams = scene(ChainPendulum(3, beams=True))
    assert len(beams.bars) == 3 and not beams.rods
    reference = beams.places(ChainPendulum(3, beams=True).description.reference.numpy())
    np.testing.assert_allclose([np.linalg.norm(reference[a] - reference[b]) for a, b in beams.bars], 1.0)
    assert len(scene(MagnetPendulum(magnets=3)).magnets) == 3
    cart = scene(system_by_name("cart-pole"))
    assert len(cart.sliders) == 1 and len(cart.wires) == 1 and abs(cart.sliders[0][1]).tolist() == [1.0, 0.0]
    top = scene(Gyroscope())
    assert len(top.meshes) == 1 and 0.3 < top.sectors[0].mean() < 0.7  # a round body shows how it turns
    tip = top.places(Gyroscope().rest()[0].numpy())[top.tracks[0][0]]
    np.testing.assert_allclose(tip, [0, 0, -0.22172853817099086 - 0.12], atol=1e-6)  # its far end leaves the trail


@pytest.mark.parametrize("surface", ["bowl", "saddle", "torus"])
def test_wires_lie_on_the_surface(surface):
    system = Bead(surface=surface)
    scene = scene_of(system, motion(system)[0][:, 0].numpy())
    wires = torch.from_numpy(np.concatenate(scene.wires))
    assert len(scene.wires) > 10
    function = system.constraints_on_points.surfaces[0][0]
    # Marching squares cut cells of a fortieth of the box by straight lines.
    assert float(function(wires).abs().max()) < 0.02


def test_bodies_without_a_mesh_have_their_moments(tmp_path):
    world = Assembly(3)
    door = world.body("door", 3, box(20.0, (0.9, 0.04, 2.0)))
    plate = world.body("plate", 2, disk(1.0, 0.4), position=(2.0, 0.0, 0.0))
    stick = world.body("stick", 1, rod(1.0, 0.5), position=(3.0, 0.0, 0.0))
    world.spring(plate.at(0.0, 0.0), stick.at(0.25), 10.0, 0.5)
    world.spring(plate.at(0.0, 0.0), door.at(0.0, 0.0, 0.0), 10.0, 0.5)
    system = System(world.build("furniture"))
    reference = system.description.reference.numpy()
    scene = scene_of(system, reference[None])
    corners = posed(scene.places(reference), *scene.meshes[0][:2])
    np.testing.assert_allclose(np.ptp(corners, axis=0), [0.9, 0.04, 2.0], rtol=1e-9)
    rim = posed(scene.places(reference), *scene.meshes[1][:2])
    assert np.linalg.norm(rim - [2.0, 0.0, 0.0], axis=1).max() == pytest.approx(0.4)
    (a, b), *_ = scene.bars
    places = scene.places(reference)
    assert np.linalg.norm(places[a] - places[b]) == pytest.approx(0.5)
    z, t = motion(system, 3)
    animate(system, z, t, tmp_path / "a.gif", size=48, progress=False)
    assert snapshot(system, z[0], size=50).size == (50, 50)


def test_a_spring_is_as_long_as_it_is():
    for a, b in [((0.0, 0.0), (1.0, 2.0)), ((0.0, 0.0, 0.0), (0.0, 0.0, -2.0)), ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))]:
        a, b = np.array(a), np.array(b)
        wave = coil(a, b, 0.05)
        assert np.isfinite(wave).all() and (wave[0] == a).all() and (wave[-1] == b).all()
        u = (b - a) / max(np.linalg.norm(b - a), 1e-12)
        off = wave - a - ((wave - a) @ u)[:, None] * u
        assert np.linalg.norm(off, axis=1).max() == pytest.approx(0.05, rel=0.01)


def test_a_second_trajectory_is_grey(tmp_path):
    system = ChainPendulum(links=1)
    z, t = motion(system)
    animate(system, z, t, tmp_path / "a.html", truth=-z, progress=False)
    scene = Page((tmp_path / "a.html").read_text()).scene
    np.testing.assert_allclose(unpacked(scene["ghost"]).reshape(5, -1, 2)[:, :1], -z[:, 0], atol=1e-6)
    painter = Painter(scene_of(system, torch.cat([z, -z])[:, 0].numpy()), 100)
    here, there = (painter.scene.places(x[0, 0].numpy()) for x in (z, -z))
    alone, both = (np.asarray(painter.picture(here, here[None], ghost=ghost)) for ghost in (None, there))
    new = both[(alone != both).any(-1)].astype(int)
    assert len(new) > 20 and np.ptp(new[:, :2], axis=1).max() < 30  # greys
    assert ImageColor.getrgb(BACKGROUND) in {tuple(p) for p in alone.reshape(-1, 3).tolist()}


def test_a_name_cannot_break_out_of_the_page(tmp_path):
    world = Assembly(2)
    world.tether(world.point("bob", 1.0, position=(0.6, -0.8)), (0, 0), 1.0)
    system = System(world.build("</script><script>alert(1)</script>"))
    z, t = motion(system)
    animate(system, z, t, tmp_path / "a.html", progress=False)
    page = Page((tmp_path / "a.html").read_text())
    assert len(page.scripts) == 2 and page.scene["name"] == system.name


def test_bad_input(tmp_path, monkeypatch):
    system = ChainPendulum(links=2)
    z, t = motion(system)
    spoilt = z.clone()
    spoilt[3, 0, 1, 0] = torch.nan
    for arguments, options, message in [
        ((z, t, "a.avi"), {}, r"ends in \.gif, \.mp4 or \.html, got 'a\.avi'"),
        ((z, t, "none/a.gif"), {}, "folder .* does not exist"),
        ((z[None], t, "a.gif"), {}, r"one of the batch, z\[0\]"),
        ((z[:3], t, "a.gif"), {}, r"expected z of shape \(5, 2, 2, 2\)"),
        ((z[:1], t[:1], "a.gif"), {}, "at least two"),
        ((z, -t, "a.gif"), {}, "increasing"),
        ((spoilt, t, "a.html"), {}, r"NaN or infinity in z from t = 0\.12 s"),
        ((z, t, "a.gif"), {"truth": z[:2]}, "expected truth of shape"),
        ((z, t, "a.gif"), {"fps": 0}, "positive finite fps"),
        ((z, t, "a.gif"), {"speed": float("inf")}, "positive finite speed"),
        ((z, t, "a.gif"), {"trail": -1.0}, "trail"),
    ]:
        with pytest.raises(UserError, match=message):
            animate(system, arguments[0], arguments[1], tmp_path / arguments[2], progress=False, **options)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match=r"chnn\[mp4\]"):
        animate(system, z, t, tmp_path / "a.mp4", progress=False)
    assert list(tmp_path.iterdir()) == []

"""Robot files and meshes made to cost memory or time end with one line that names the bound, before either is spent."""

from __future__ import annotations

import os
import resource
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from chnn.formats import read_robot
from chnn.formats.frames import from_quaternion, from_xy_axes, from_z_axis
from chnn.formats.meshes import read_mesh
from chnn.formats.xml import parse_xml
from chnn.systems import System
from lie.run import UserError

BODY = '<mujoco><worldbody>\n<body name="b">{}</body></worldbody></mujoco>'
BOX = '<geom type="box" size="1 1 1"/>'
LOOSE = '<body><freejoint/><geom size=".1"/></body>'
SECONDS = 10.0  # of processor time; the slowest here takes 3, reading to the bound of 100,000 elements
BYTES = 600 * 2**20  # above what is imported; the largest here takes 200 MiB


def refusal(path: Path, message: str) -> None:
    """Check that a file is refused by one line, in bounded time and memory."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(UserError, match=message) as caught:
        System.from_file(path)
    assert time.process_time() - start < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES
    assert len(str(caught.value)) < 2000


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "robot.xml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def nested(count: int) -> str:
    """A chain of ``count`` bodies, each in the one before."""
    inside = "".join(f'<body name="b{k}" pos="0 0 -.1"><joint axis="0 1 0"/><geom size=".05"/>' for k in range(count))
    return f"<mujoco><worldbody>{inside}{'</body>' * count}</worldbody></mujoco>"


def test_reading_nested_bodies_is_linear_in_the_size_of_the_file(tmp_path):
    # Before, 20 levels took 14 s and 1.35 GB, twice that for each more: 60 would not end.
    peaks = []
    for count in (15, 60):
        path = written(tmp_path, nested(count))
        tracemalloc.start()
        tree, _ = read_robot(path, ignore=("contacts",))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(tree.links) == count
    assert peaks[1] < 6 * peaks[0]  # four times the file; what every file takes alike is in both


def test_the_digest_tells_apart_what_differs_and_no_layout(tmp_path):
    def digest(text: str) -> str:
        return read_robot(written(tmp_path, text))[0].digest

    one = digest(BODY.format(f'<joint axis="0 1 0"/>{BOX}'))
    assert one == digest(BODY.format(f'\n <!-- a --> <joint\n axis = "0 1 0"></joint>{BOX}'))
    texts = [f'<joint axis="0 1 0.5"/>{BOX}', f'<joint/>{BOX}', f'<joint name="0 1 0"/>{BOX}',
             f'<joint axis="0 1 0"/>{BOX}<site/>', f'<joint axis="0 1 0"/><frame>{BOX}</frame>']  # fmt: skip
    assert len({one, *(digest(BODY.format(text)) for text in texts)}) == 6


def test_the_digest_covers_meshes_with_mass(tmp_path):
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    digests = set()
    for size in (1.0, 2.0):
        lines = [f"v {x} {y} {z}" for x, y, z in size * corners] + ["f 1 3 2", "f 1 2 4", "f 2 3 4", "f 1 4 3"]
        (tmp_path / "a.obj").write_text("\n".join(lines))
        text = BODY.format('<joint/><geom type="mesh" mesh="a"/>').replace(
            "<worldbody>", '<asset><mesh file="a.obj"/></asset><worldbody>'
        )
        digests.add(read_robot(written(tmp_path, text))[0].digest)
    assert len(digests) == 2


def classes(depth: int, wide: int) -> str:
    """Defaults within one another, each of many attributes: 7.8 GB where each copies the one around it."""
    opened = "".join(
        f'<default class="c{k}"><geom {" ".join(f"""a{k}_{i}="0" """ for i in range(wide))}/>' for k in range(depth)
    )
    geom = f'<geom class="c{depth - 1}" size="1"/>'
    return f'<mujoco>{opened}{"</default>" * depth}<worldbody><body name="b"><joint/>{geom}</body></worldbody></mujoco>'


ENCODED = {
    "unknown": (b'<?xml version="1.0" encoding="klingon"?><robot/>', "robot.xml:1: .*encoding"),
    "several bytes": (b'<?xml version="1.0" encoding="utf-7"?><robot/>', "robot.xml:1: .*encoding"),
    "no codec of text": (b'<?xml version="1.0" encoding="rot13"?><robot/>', "robot.xml:1: "),
    "NUL": (b"<robot>\n\0</robot>", "robot.xml:2: is not well-formed"),
    "cut UTF-16": ('<robot name="é"/>'.encode("utf-16")[:-1], "robot.xml:1: "),
    "wrong UTF-8": (b'<robot name="\xff\xfe"/>', "robot.xml:1: is not well-formed"),
    "empty": (b"", "robot.xml:1: is not well-formed"),
    "only a mark": (b"\xef\xbb\xbf", "robot.xml:1: is not well-formed"),
}
HOSTILE = {
    "defaults": (classes(150, 150), r"attributes by its class 'c149', at most 200 are read"),
    "classes": ('<mujoco>' + '<default class="a"/>' * 2000 + "</mujoco>", "one of more than 1000 classes"),
    "depth": ("<mujoco><worldbody>" + "<body>" * 10**5, "deeper than 200"),
    "elements": ("<mujoco>" + "<size/>" * 200_000 + "</mujoco>", "more than 100000 elements"),
    "attributes": ("<mujoco" + "".join(f' a{k}="0"' for k in range(10**5)) + "/>", "100000 attributes, at most 200"),
    "bytes": ("<mujoco>" + " " * 2**25 + "</mujoco>", "33554449 bytes; .* may have 16777216"),
    "numbers": (BODY.format(f'<joint axis="{"1 " * 10**6}"/>{BOX}'), r"expects 3 numbers in axis=, got"),
    "words": (BODY.format(f'<joint/><geom size="{"x " * 10**6}"/>'), r"expects numbers in size="),
    "name": (BODY.format(f'<joint nam="1"/>{BOX}').replace('"b"', f'"{"b" * 10**6}"'), "unknown attribute 'nam'"),
    "value": (BODY.format(f'<joint type="{"h" * 10**6}"/>'), r"unknown type= 'hhh.*\(1000000 characters\)"),
    "geoms": (BODY.format("<joint/>" + BOX * 10_001), "more than 10000 geoms"),
    "bodies": (
        f"<mujoco><worldbody>{LOOSE * 201}</worldbody></mujoco>",
        "has 201 links that move, at most 200",
    ),
    "entity": ('<!DOCTYPE r [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><robot>&b;</robot>', "document type or an entity"),
    "parameter": ('<!DOCTYPE r [<!ENTITY % a SYSTEM "robot.xml"> %a;]><robot/>', "document type"),
    "underscore": (BODY.format(f'<joint axis="0 1_0 0"/>{BOX}'), 'expects numbers in axis=, got "0 1_0 0"'),
    "far": (BODY.format(f'<joint/>{BOX}').replace('"b"', '"b" pos="0 0 1e10"'), "at most 1e.09 in pos="),
    "large": (BODY.format(f'<joint stiffness="1e300"/>{BOX}'), "at most 1e.30 in stiffness="),
    "contype": (BODY.format('<joint/><geom size="1" contype="1e20"/>'), r"from 0 to 2\^31 - 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_take_memory_or_time_is_refused_by_its_bound(tmp_path, name):
    text, message = HOSTILE[name]
    refusal(written(tmp_path, text), message)


@pytest.mark.parametrize("name", ENCODED)
def test_what_is_no_text_in_a_known_encoding_is_refused_by_file_and_line(tmp_path, name):
    data, message = ENCODED[name]
    refusal(written(tmp_path, data), message)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "iso-8859-1"])
def test_encodings_that_xml_knows_are_read(encoding):
    text = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>\n<robot name="é"/>'
    root = parse_xml(text.encode(encoding), "robot.xml")
    assert root.get("name") == "é" and root.line == 2


def test_files_that_include_one_another_are_bounded_together(tmp_path):
    # 10^8 elements from 9 files of 110 bytes; it ran for more than 90 s and took 3.9 GB.
    for k in range(8):
        include = f'<include file="{k + 1}.xml"/>'
        (tmp_path / f"{k}.xml").write_text(f"<mujoco>{include * 10}</mujoco>")
    (tmp_path / "8.xml").write_text("<mujoco><size/></mujoco>")
    refusal(tmp_path / "0.xml", "more than 100000 elements, with those included")
    (tmp_path / "8.xml").write_text(f"<mujoco>{' ' * 2**20}</mujoco>")
    refusal(tmp_path / "0.xml", "all that it includes may have 16777216")
    for k in range(40):
        (tmp_path / f"d{k}.xml").write_text(
            "<mujoco>" + "<worldbody>" * 50 + f'<include file="d{k + 1}.xml"/>' + "</worldbody>" * 50 + "</mujoco>"
        )
    refusal(tmp_path / "d0.xml", "deeper than 200 elements, with those that are included")


def test_devices_pipes_folders_and_loops_of_links_are_no_robots(tmp_path):
    os.mkfifo(tmp_path / "pipe.xml")
    (tmp_path / "loop.xml").symlink_to(tmp_path / "loop.xml")
    for path, message in ((Path("/dev/zero"), "a device or a pipe"), (tmp_path / "pipe.xml", "a device or a pipe"),
                          (tmp_path, "which is a folder"), (tmp_path / "no.xml", "no file"),
                          (tmp_path / "loop.xml", "cannot read")):  # fmt: skip
        refusal(path, message)
    for target in ("/dev/zero", str(tmp_path / "pipe.xml")):
        (tmp_path / "mesh.stl").unlink(missing_ok=True)
        (tmp_path / "mesh.stl").symlink_to(target)
        with pytest.raises(UserError, match="a device or a pipe"):
            read_mesh(tmp_path / "mesh.stl")


SIZES = ["1e-320", "1e-200", "1e308", "-1", "0", "nan", "inf", "1e12"]


@pytest.mark.parametrize("kind", ["sphere", "capsule", "cylinder", "box", "ellipsoid"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rest", [".1", "1e-320", "1e308"])
def test_extreme_sizes_are_refused_by_file_line_and_element(tmp_path, kind, size, rest):
    for text in (f"{size} {rest} {rest}", f"{rest} {size} {rest}"):
        if kind == "sphere" and text.startswith(".1"):
            continue  # of which the other lengths are not read
        path = written(tmp_path, BODY.format(f'<joint/><geom type="{kind}" size="{text}"/>'))
        with np.errstate(
            over="raise", invalid="raise", divide="raise"
        ):  # a warning of numpy would be a second line of the command's
            refusal(path, "^robot.xml:2: <geom> expects ")


@pytest.mark.parametrize("mass", ["1e-320", "1e-16", "1e308", "1e20", "nan"])
def test_extreme_masses_and_moments_are_refused_by_file_line_and_element(tmp_path, mass):
    urdf = ('<robot name="r"><link name="world"/>\n<link name="a"><inertial><mass value="{}"/><inertia ixx="{}" '
            'iyy="{}" izz="{}"/></inertial></link><joint name="j" type="continuous"><parent link="world"/>'
            '<child link="a"/></joint></robot>')  # fmt: skip
    other = {"1e-16": "1e-40", "1e20": "1e31"}.get(mass, mass)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        refusal(written(tmp_path, urdf.format(mass, 1, 1, 1)), "^robot.xml:2: <(link|mass)")
        refusal(written(tmp_path, urdf.format(1, other, other, other)), "^robot.xml:2: <(link|inertia)")
        inertial = '<joint/><inertial pos="0 0 0" mass="{}" diaginertia="{} {} {}"/>'
        refusal(written(tmp_path, BODY.format(inertial.format(mass, 1, 1, 1))), "^robot.xml:2: <(body|inertial)")
        refusal(written(tmp_path, BODY.format(f'<joint/><geom size="1" mass="{mass}"/>')), "^robot.xml:2: <(body|geom)")
        size = "1e9" if mass == "1e20" else "1e-9"  # of which the volume makes that of the density a mass as extreme
        density = BODY.format(f'<joint/><geom size="{size}" density="{mass}"/>')
        refusal(written(tmp_path, density), "^robot.xml:2: <(body|geom)")


def test_directions_of_any_length_keep_their_digits():
    # The squares of 1e-160 have four digits in float64, those of 1e200 none.
    exact = np.array([1.0, 2.0, 3.0]) / 14.0**0.5
    for scale in (1e-300, 1e-160, 1.0, 1e200):
        np.testing.assert_allclose(from_z_axis(scale * np.array([1.0, 2.0, 3.0]))[:, 2], exact, rtol=1e-15)
        turn = from_quaternion(scale * np.array([1.0, 2.0, 3.0, 4.0]))
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-15)
        np.testing.assert_allclose(turn, from_quaternion([1.0, 2.0, 3.0, 4.0]), atol=1e-15)
        frame = from_xy_axes([scale, scale, 0.0, 0.0, scale, scale])
        np.testing.assert_allclose(frame.T @ frame, np.eye(3), atol=1e-15)


def test_meshes_that_announce_more_than_they_hold_or_break_off_are_refused(tmp_path):
    facet = struct.pack("<12fH", *[0.0] * 3, *np.eye(3).ravel().tolist(), 0)
    files = {
        "count.stl": b"\0" * 80 + struct.pack("<I", 2**32 - 1) + facet,
        "cut.stl": b"\0" * 80 + struct.pack("<I", 2) + facet + facet[:20],
        "nan.stl": b"\0" * 80 + struct.pack("<I", 1) + facet.replace(struct.pack("<f", 1.0), b"\xff" * 4),
        "text.stl": b"solid a\nfacet\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1",
        "words.stl": b"solid a\nvertex a b c\nvertex 1 0 0\nvertex 0 1 0",
        "empty.stl": b"",
        "index.obj": b"v 0 0 0\nf 1 2 999999999999999999999",
        "zero.obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 0 1 2",
        "ragged.obj": b"v 0 0 0\nv 1 0\nv 0 1 0\nf 1 2 3",
        "huge.obj": b"v 0 0 0\nv 1e300 0 0\nv 0 1 0\nf 1 2 3",
        "bytes.obj": b"v \xff 0 0",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f"the mesh {name} "):
            read_mesh(tmp_path / name)
    with (tmp_path / "long.stl").open("wb") as file:
        file.truncate(2**27)
    with pytest.raises(UserError, match="more than 67108864 bytes"):
        read_mesh(tmp_path / "long.stl")


def test_a_mesh_that_is_drawn_again_and_again_is_counted(tmp_path):
    count = 20_000
    facets = np.zeros(count, np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("more", "<u2")]))
    facets["corners"] = np.random.default_rng(0).normal(size=(count, 3, 3))
    (tmp_path / "a.stl").write_bytes(b"\0" * 80 + struct.pack("<I", count) + facets.tobytes())
    visual = '<visual><geometry><mesh filename="a.stl"/></geometry></visual>'
    refusal(
        written(tmp_path, f'<robot><link name="world">{visual * 200}</link></robot>'), "more than 2000000 triangles"
    )


def test_equations_too_long_to_compile_are_simulated_by_torch(tmp_path, caplog):
    """Forty links in a row: compiling them did not end in 250 s."""
    axes = ("1 0.2 0", "0 1 0.3")
    links = "".join(
        f'<body name="b{i}" pos="0.3 0 0"><joint name="j{i}" type="hinge" axis="{axes[i % 2]}"/>'
        '<inertial pos="0.15 0 0" mass="1" diaginertia="0.01 0.02 0.02"/>'
        for i in range(40)
    )
    path = written(tmp_path, f"<mujoco><worldbody>{links}{'</body>' * 40}</worldbody></mujoco>")
    robot = System.from_file(path)
    z0, times = robot.state(), torch.linspace(0, 0.01, 2)
    start = time.process_time()
    with caplog.at_level("INFO", "chnn.simulation"):
        z = robot.simulate(z0, times)
    # The program is abandoned after 250,000 operations, in about 3 s; the steps by torch take as long again.
    assert time.process_time() - start < 60.0
    assert "more than the 250,000 operations" in caplog.text
    assert robot.constraints(z).abs().max() < 1e-12
    with pytest.raises(UserError, match=r"backend 'numba' cannot simulate .* 250,000 operations"):
        robot.simulate(z0, times, backend="numba")

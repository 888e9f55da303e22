"""Robots from URDF and MJCF against MuJoCo, which reads the same files and works in minimal coordinates."""

from __future__ import annotations

import re
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch
from chnn.cli import main
from chnn.formats import FEATURES, read_robot
from chnn.storage import Settings, load_run, simulate_run
from chnn.systems import ChainPendulum, FourBar, Robot, System, arguments_of
from chnn.systems.shapes import cuboid, lathe
from lie.run import UserError
from scipy.spatial.transform import Rotation

ARM = """<mujoco model="arm">
  <compiler angle="degree" eulerseq="XYz"/>
  <option gravity="0.3 0 -9.81"><flag contact="disable"/></option>
  <default>
    <joint damping="0.02"/>
    <geom density="800"/>
    <default class="thin"><geom size="0.02" rgba="1 0 0 1"/></default>
  </default>
  <worldbody>
    <geom type="plane" size="1 1 1"/>
    <body name="upper" pos="0.1 0.2 0.5" euler="10 20 30">
      <joint name="shoulder" axis="1 0 0.3" pos="0 0 0.01"/>
      <geom type="capsule" fromto="0 0 0 0.3 0.1 0" size="0.03"/>
      <geom type="box" pos="0.1 0 0.02" size="0.02 0.03 0.04" euler="0 40 0" mass="0.3"/>
      <body name="lower" pos="0.3 0.1 0" quat="0.9 0.1 0.2 0.3" childclass="thin">
        <joint name="elbow" axis="0 1 0" stiffness="2" springref="30" ref="10" damping="0.1"/>
        <geom type="cylinder" fromto="0 0 0 0 0 0.25"/>
        <geom type="ellipsoid" size="0.03 0.05 0.02" pos="0 0.02 0.2" axisangle="1 1 0 25"/>
        <frame pos="0 0 0.2" euler="0 0 90"><body name="pad" pos="0 0 0.05" xyaxes="0 1 0 -1 0 0.2">
          <geom type="sphere" size="0.04" pos="0.02 0 0"/>
        </body></frame>
        <body name="hand" pos="0 0 0.27" zaxis="0.2 0.1 1">
          <joint name="wrist" axis="0.2 1 0"/>
          <inertial pos="0.01 0.02 0.05" mass="0.4" fullinertia="0.001 0.0012 0.0009 0.0001 -0.0002 0.00005"/>
          <geom type="box" size="0.03 0.02 0.05"/>
        </body>
      </body>
    </body>
  </worldbody>
</mujoco>"""

BALLS = """<mujoco model="balls">
  <compiler angle="radian" inertiagrouprange="0 2"/>
  <default><geom contype="0" conaffinity="0"/></default>
  <worldbody>
    <body name="first" pos="0 0 1">
      <joint type="ball" pos="0 0 0.02"/>
      <geom type="capsule" fromto="0 0 0 0.2 0.1 -0.4" size="0.03"/>
      <geom type="box" size="0.3 0.3 0.3" group="3"/>
      <body name="second" pos="0.2 0.1 -0.4" euler="0.3 -0.4 1.1">
        <joint type="ball" damping="0.05"/>
        <geom type="ellipsoid" size="0.03 0.04 0.1" pos="0.02 0.03 -0.2" euler="0.5 0 0.2" density="3000"/>
        <body name="third" pos="0 0 -0.3">
          <joint type="ball" damping="0.02"/>
          <inertial pos="0 0.01 -0.1" mass="0.3" diaginertia="0.002 0.003 0.004" axisangle="1 2 3 0.7"/>
        </body>
      </body>
    </body>
  </worldbody>
</mujoco>"""

DRONE = """<mujoco model="drone">
  <option><flag contact="disable"/></option>
  <worldbody>
    <body name="hull" pos="1 1 1" euler="5 6 7">
      <freejoint/>
      <geom type="box" size="0.1 0.2 0.05"/>
      <body name="prop" pos="0.1 0.1 0.05">
        <joint name="p1" axis="0 0 1"/><joint name="p2" axis="0 1 0.2"/>
        <inertial pos="0 0 0.02" mass="0.2" diaginertia="0.002 0.003 0.004" axisangle="1 2 3 40"/>
      </body>
      <body name="tail" pos="-0.1 0 0.1">
        <joint name="t" axis="1 1 0" damping="0.01" stiffness="0.3"/>
        <geom type="capsule" fromto="0 0 0 -0.3 0 0" size="0.02"/>
        <body name="fin" pos="-0.3 0 0"><joint name="f" axis="0 1 0"/>
          <geom type="ellipsoid" size="0.1 0.01 0.05"/></body>
      </body>
      <body name="leg" pos="-0.1 0 0">
        <joint name="l1" axis="0 0 1"/><joint name="l2" axis="0 1 0.2"/><joint name="l3" axis="1 0 0"/>
        <geom type="capsule" fromto="0 0 0 0 0 -0.3" size="0.02"/>
      </body>
    </body>
  </worldbody>
</mujoco>"""

CART = """<mujoco model="cart">
  <compiler angle="radian"/>
  <option><flag contact="disable"/></option>
  <worldbody>
    <body name="cart" pos="0 0 1">
      <joint type="slide" name="rail" axis="1 0.2 0" damping="0.3" stiffness="4" springref="0.1"/>
      <geom type="box" size="0.2 0.1 0.05" mass="1"/>
      <body name="pole"><joint name="pivot" axis="0 1 0" stiffness="0.5" springref="-0.7" damping="0.02"/>
        <geom type="capsule" fromto="0 0 0 0.001 0 0.6" size="0.02"/></body>
    </body>
    <body name="puck" pos="2 0 0">
      <joint type="slide" name="px" axis="1 0 0"/><joint type="slide" name="pz" axis="0 0 1"/>
      <joint name="turn" axis="0 1 0" pos="0.1 0 0"/>
      <geom type="box" size="0.2 0.1 0.05" mass="1"/>
      <body name="arm" pos="0.2 0 0"><joint name="elbow" axis="0.3 1 0"/>
        <geom type="capsule" fromto="0 0 0 0.4 0 0" size="0.02"/></body>
    </body>
  </worldbody>
</mujoco>"""

URDF = """<?xml version="1.0"?>
<robot name="urdf arm">
  <link name="world"/>
  <link name="base"><inertial><mass value="5"/>
    <inertia ixx="1" ixy="0" ixz="0" iyy="1" iyz="0" izz="1"/></inertial></link>
  <joint name="held" type="fixed"><parent link="world"/><child link="base"/><origin xyz="0.1 0 0.2" rpy="0.1 0.2 0.3"/>
  </joint>
  <link name="upper">
    <inertial><origin xyz="0.1 0.02 0" rpy="0.3 -0.2 0.9"/><mass value="1.2"/>
      <inertia ixx="0.01" ixy="0.001" ixz="-0.002" iyy="0.02" iyz="0.003" izz="0.025"/></inertial>
    <visual><geometry><box size="0.2 0.05 0.05"/></geometry></visual>
  </link>
  <joint name="shoulder" type="continuous"><parent link="base"/><child link="upper"/>
    <origin xyz="0 0 0.1" rpy="0.5 0 -0.4"/><axis xyz="0 1 0.5"/><dynamics damping="0.1"/></joint>
  <link name="lower"><inertial><origin xyz="0 0 -0.15"/><mass value="0.7"/>
    <inertia ixx="0.004" ixy="0" ixz="0" iyy="0.0045" iyz="0" izz="0.001"/></inertial>
    <visual><origin rpy="0 1.5707963267948966 0"/><geometry><cylinder radius="0.02" length="0.3"/></geometry></visual>
  </link>
  <joint name="elbow" type="continuous"><parent link="upper"/><child link="lower"/>
    <origin xyz="0.2 0 0.01" rpy="1.2 -0.7 0.2"/><axis xyz="1 0 0"/><limit effort="3" velocity="2"/></joint>
  <link name="tool"><inertial><origin xyz="0.02 0 0"/><mass value="0.2"/>
    <inertia ixx="0.0002" ixy="0" ixz="0" iyy="0.0003" iyz="0" izz="0.0004"/></inertial></link>
  <joint name="grip" type="fixed"><parent link="lower"/><child link="tool"/>
    <origin xyz="0 0 -0.3" rpy="0 0.4 0"/></joint>
  <link name="flap"><inertial><origin xyz="0.05 0 0" rpy="0 0 1"/><mass value="0.3"/>
    <inertia ixx="0.0012" ixy="0.0002" ixz="0" iyy="0.0013" iyz="0" izz="0.0014"/></inertial></link>
  <joint name="wrist" type="continuous"><parent link="tool"/><child link="flap"/><origin xyz="0 0 -0.05"/></joint>
</robot>"""


def for_mujoco(text: str) -> str:
    """A URDF as MuJoCo must be given it: it leaves out the orientation of <inertial>, and melts welded links together
    with their centres in the wrong frame."""

    def turned(match: re.Match[str]) -> str:
        xyz, rpy, between, inertia = match.groups()
        R = Rotation.from_euler("xyz", [float(angle) for angle in rpy.split()]).as_matrix()
        xx, xy, xz, yy, yz, zz = (float(value) for value in re.findall(r'i..="([^"]*)"', inertia))
        tensor = R @ np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]) @ R.T
        upper = zip(("ixx", "ixy", "ixz", "iyy", "iyz", "izz"), tensor[np.triu_indices(3)], strict=True)
        numbers = " ".join(f'{name}="{value:.17g}"' for name, value in upper)
        return f'<inertial><origin xyz="{xyz}"/>{between}<inertia {numbers}/>'

    text = re.sub(
        r'<inertial><origin xyz="([^"]*)" rpy="([^"]*)"/>(.*?)<inertia (.*?)/>', turned, text, flags=re.DOTALL
    )
    return text.replace(
        "<link", '<mujoco><compiler angle="radian" eulerseq="XYZ" fusestatic="false"/></mujoco><link', 1
    )


FILES = {"arm": ARM, "balls": BALLS, "drone": DRONE, "cart": CART, "urdf": URDF}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("robots")
    for name, text in FILES.items():
        (folder / f"{name}.xml").write_text(text)
    (folder / "twins").mkdir()
    (folder / "twins/urdf.xml").write_text(for_mujoco(URDF))
    return folder


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Twin:
    """The same file in MuJoCo, and its motion as states of our points."""

    def __init__(self, robot: Robot, path: Path) -> None:
        twin = path.parent / "twins" / path.name
        self.model = mujoco.MjModel.from_xml_path(str(twin if twin.exists() else path))
        self.model.opt.enableflags |= mujoco.mjtEnableBit.mjENBL_ENERGY
        self.data = mujoco.MjData(self.model)
        mujoco.mj_forward(self.model, self.data)
        self.bodies, self.centres = [], []
        for body in robot.description.bodies:
            index = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_BODY, body.name)
            x = robot.description.reference[body.first : body.first + 4].numpy()
            R = self.data.xmat[index].reshape(3, 3)
            np.testing.assert_allclose((x[1:] - x[0]).T, R, atol=1e-12)
            self.bodies.append(index)
            self.centres.append(R.T @ (x[0] - self.data.xpos[index]))

    def start(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        mujoco.mj_resetData(self.model, self.data)
        mujoco.mj_integratePos(self.model, self.data.qpos, rng.normal(size=self.model.nv), 1.0)
        self.data.qvel[:] = rng.normal(size=self.model.nv)
        mujoco.mj_forward(self.model, self.data)

    def state(self) -> np.ndarray:
        """Positions, velocities and accelerations (3, n, 3) of our points, by the Jacobians of MuJoCo."""
        model, data = self.model, self.data
        mujoco.mj_forward(model, data)
        parts: list[list[np.ndarray]] = [[], [], []]
        for index, centre in zip(self.bodies, self.centres, strict=True):
            R = data.xmat[index].reshape(3, 3)
            place = data.xpos[index] + R @ centre
            J, rate = np.zeros((2, 3, model.nv)), np.zeros((2, 3, model.nv))
            mujoco.mj_jac(model, data, J[0], J[1], place, index)
            mujoco.mj_jacDot(model, data, rate[0], rate[1], place, index)
            v, w = J @ data.qvel
            a, turning = J @ data.qacc + rate @ data.qvel
            parts[0] += [place, *(place + R.T)]
            parts[1] += [v, *(v + np.cross(w, R.T))]
            parts[2] += [a, *(a + np.cross(turning, R.T) + np.cross(w, np.cross(w, R.T)))]
        return np.array(parts)


@pytest.mark.parametrize("name", FILES)
def test_accelerations_and_energies_are_those_of_mujoco(folder, name):
    path = folder / f"{name}.xml"
    robot = System.from_file(path)
    twin = Twin(robot, path)
    for seed in range(3):
        twin.start(seed)
        x, v, a = torch.from_numpy(twin.state())
        z = torch.stack([x, v])
        assert robot.constraints(z).abs().max() < 1e-13  # the same kinematics; rounding of some ten rotations
        assert robot.velocity_constraints(z).abs().max() < 1e-13 * max(1.0, float(v.abs().max()))
        got = robot.field(z)[1]
        # MuJoCo turns a full inertia to its axes up to 1e-12 of it, and the last links are a hundredth of the first.
        assert (got - a).abs().max() <= 1e-8 * max(1.0, float(a.abs().max()))
        assert float(robot.kinetic(z)) == pytest.approx(twin.data.energy[1], rel=1e-8)
        held = 5.0 * 9.81 * 0.2 if name == "urdf" else 0.0  # the base, which does not move
        assert float(robot.potential(x)) == pytest.approx(twin.data.energy[0] - held, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("name", "backend"), [*((name, "torch") for name in FILES), ("cart", "numba")])
def test_trajectories_are_those_of_mujoco(folder, name, backend):
    path = folder / f"{name}.xml"
    robot = System.from_file(path)
    twin = Twin(robot, path)
    twin.model.opt.integrator = mujoco.mjtIntegrator.mjINT_RK4
    ends = []
    for steps in (1000, 2000):
        twin.model.opt.timestep = 0.4 / steps
        twin.start(1)
        z0 = torch.from_numpy(twin.state()[:2])
        mujoco.mj_step(twin.model, twin.data, steps)
        ends.append(torch.from_numpy(twin.state()[:2]))
    # Its quaternions converge with the square of the step, to 5e-6 at the smaller one: extrapolated, to 1e-8.
    expected = (4.0 * ends[1] - ends[0]) / 3.0
    z = robot.simulate(z0[None], torch.tensor([0.0, 0.4], dtype=torch.float64), 1e-11, backend=backend)[0, -1]
    assert (z - expected).abs().max() <= 1e-7 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("name", FILES)
def test_coordinates_and_back(folder, name):
    robot = System.from_file(folder / f"{name}.xml")
    z = robot.sample(5, generator=generator())
    q = robot.to_angles(z)
    assert q.shape == (5, 2, robot.num_angles) and len(robot.angle_names) == robot.num_angles
    torch.testing.assert_close(robot.from_angles(q), z, rtol=0, atol=1e-12)
    reference = torch.stack([robot.description.reference, torch.zeros_like(robot.description.reference)])
    angles = torch.zeros(2, robot.num_angles, dtype=torch.float64)
    if name != "drone":  # whose centre and frame are measured in space
        torch.testing.assert_close(robot.to_angles(reference), angles, rtol=0, atol=1e-12)
        torch.testing.assert_close(robot.from_angles(angles), reference, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.func.vmap(robot.from_angles)(q), z, rtol=0, atol=1e-12)
    low = robot.from_angles(q.float())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), z, rtol=0, atol=2e-5)  # a dozen float32 rotations at lengths of a few m
    # Rates are derivatives: along a straight line in coordinates, a central difference of the positions.
    h = 1e-6
    ahead, behind = (robot.from_angles(torch.stack([q[:, 0] + s * h * q[:, 1], q[:, 1]], 1))[:, 0] for s in (1, -1))
    torch.testing.assert_close((ahead - behind) / (2 * h), z[:, 1], rtol=0, atol=1e-8)  # rounding over h
    start = q[0, 0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda c: robot.from_angles(torch.stack([c, c])), start, fast_mode=True)


def test_a_state_by_names(folder):
    robot = System.from_file(folder / "cart.xml")
    z = robot.state({"pivot": 0.3}, {"rail": -1.0})
    q = robot.to_angles(z)[0]
    expected = torch.zeros(2, 6, dtype=torch.float64)
    expected[0, 1], expected[1, 0] = 0.3, -1.0
    torch.testing.assert_close(q, expected, rtol=0, atol=1e-12)
    with pytest.raises(UserError, match="unknown coordinate 'pivott': did you mean 'pivot'"):
        robot.state({"pivott": 0.3})
    with pytest.raises(UserError, match=r"shape \(..., 2, 6\) for cart, got \(2, 5\); they are rail, pivot"):
        robot.from_angles(torch.zeros(2, 5))


def test_a_file_of_a_pendulum_is_the_pendulum(tmp_path):
    """The double pendulum of beams in the plane, also as the system that exists."""
    links = ""
    for i in (1, 2):
        links += f"""<body name="{i}" pos="0 0 {0.0 if i == 1 else -1.0}"><joint axis="0 1 0"/>
            <inertial pos="0 0 -0.5" mass="1" diaginertia="{1 / 12 + 1e-3} {1 / 12 + 1e-3} 2e-3"/>"""
    path = tmp_path / "double.xml"
    path.write_text(f"<mujoco><worldbody>{links}</body></body></worldbody></mujoco>")
    robot, chain = System.from_file(path), ChainPendulum(2, beams=True)
    angles = torch.tensor([[[1.0, 2.0], [0.5, -0.3]]], dtype=torch.float64)
    # Ours turn from x to y out of hanging, relative to the rod before; the file's about +y, from z to x.
    relative = -torch.stack([angles[..., 0], angles[..., 1] - angles[..., 0]], -1)
    # The beam of the chain is thin; here 1e-3 of moment about the joint's axis is left, so compare energies' form.
    z, w = robot.from_angles(relative), chain.from_angles(angles)
    torch.testing.assert_close(z[:, 0, [0, 4]][..., [0, 2]], w[:, 0, [0, 2]], rtol=0, atol=1e-12)
    torch.testing.assert_close(robot.potential(z[:, 0]), chain.potential(w[:, 0]))
    extra = 0.5 * 1e-3 * (angles[:, 1].square()).sum(-1)
    torch.testing.assert_close(robot.kinetic(z), chain.kinetic(w) + extra)


def test_a_loop_closed_by_connect_is_the_four_bar_linkage(tmp_path):
    system = FourBar()
    z0 = system.sample(1, generator=generator())
    x = z0[0, 0].numpy()
    bodies, before, last = "", np.zeros(2), 0.0
    for i, length in enumerate(system.bars):
        along = x[2 * i + 1] - x[2 * i]
        start = x[2 * i] - 0.5 * length * along
        angle = np.arctan2(along[1], along[0])
        offset = start - before
        turn = angle - last
        c, s = np.cos(last), np.sin(last)
        offset = np.array([[c, s], [-s, c]]) @ offset
        spin = length**3 / 12
        bodies += f"""<body name="bar{i}" pos="{offset[0]:.17g} {offset[1]:.17g} 0" euler="0 0 {turn:.17g}">
          <joint axis="0 0 1"/>
          <inertial pos="{length / 2} 0 0" mass="{length}" diaginertia="1e-3 {spin + 5e-4} {spin}"/>"""
        before, last = start, angle
    end = f"{system.bars[2]} 0 0"
    text = f"""<mujoco><compiler angle="radian"/><option gravity="0 -9.81 0"/>
      <worldbody>{bodies}{"</body>" * 3}</worldbody>
      <equality><connect name="pin" body1="bar2" anchor="{end}"/></equality></mujoco>"""
    path = tmp_path / "linkage.xml"
    path.write_text(text)
    robot = System.from_file(path)
    assert robot.description.degrees_of_freedom == 1
    assert robot.description.redundant
    start = robot.from_angles(torch.zeros(1, 2, 3, dtype=torch.float64))
    t = torch.linspace(0, 1.0, 6, dtype=torch.float64)
    got = robot.simulate(start, t, 1e-11)
    z0[:, 1] = 0.0
    want = system.simulate(z0, t, 1e-11)
    torch.testing.assert_close(got[..., ::4, :2], want[..., ::2, :], rtol=0, atol=1e-8)
    assert robot.constraints(got).abs().max() < 1e-13


def test_welds_in_loops_and_sites_that_are_brought_together(tmp_path):
    """A weld of two free bodies makes one: eighteen equations, six motions; sites a little apart are joined."""
    text = """<mujoco><worldbody>
      <body name="a" pos="0 0 1"><freejoint/><geom type="box" size="0.1 0.2 0.3" contype="0"/>
        <site name="s" pos="0.1 0.2 0.3"/></body>
      <body name="b" pos="0.3 0 1" euler="10 20 30"><freejoint/><geom type="box" size="0.1 0.2 0.3" contype="0"
        conaffinity="0"/><site name="t" pos="0 0.2 0.3"/></body>
      </worldbody><equality>{}</equality></mujoco>"""
    path = tmp_path / "two.xml"
    path.write_text(text.format('<weld body1="a" body2="b"/>'))
    welded = System.from_file(path)
    assert welded.description.degrees_of_freedom == 6
    z = welded.simulate(welded.sample(2, generator=generator()), torch.tensor([0.0, 0.5]), 1e-10)
    # A rigid body: the distance between any two of its points stays.
    x = z[:, :, 0]
    torch.testing.assert_close((x[..., 1, :] - x[..., 6, :]).norm(dim=-1).diff(dim=1), torch.zeros(2, 1).double(),
                               rtol=0, atol=1e-12)  # fmt: skip
    path.write_text(text.format('<connect site1="s" site2="t"/>'))
    joined = System.from_file(path)
    assert joined.description.degrees_of_freedom == 9
    path.write_text(text.format('<weld body1="b"/><weld body1="a" active="false"/>'))
    assert System.from_file(path).description.degrees_of_freedom == 6


def test_meshes_from_files(tmp_path):
    """STL in both forms and OBJ: mass by exact integration, drawn at the same place."""
    vertices, triangles = cuboid((0.2, 0.4, 0.6))
    corners = vertices[triangles]
    facets = np.zeros(len(corners), np.dtype([("n", "<f4", 3), ("c", "<f4", (3, 3)), ("a", "<u2")]))
    facets["c"] = corners
    (tmp_path / "binary.stl").write_bytes(b"\0" * 80 + len(corners).to_bytes(4, "little") + facets.tobytes())
    lines = "".join("facet normal 0 0 0 outer loop " + "".join(f"vertex {x} {y} {z} " for x, y, z in corner)
                    + "endloop endfacet\n" for corner in corners)  # fmt: skip
    (tmp_path / "text.stl").write_text(f"solid box\n{lines}endsolid box\n")
    quads = [(1, 2, 4, 3), (5, 7, 8, 6), (1, 5, 6, 2), (3, 4, 8, 7), (1, 3, 7, 5), (2, 6, 8, 4)]
    (tmp_path / "sides.obj").write_text(
        "".join(f"v {x} {y} {z}\n" for x, y, z in vertices)
        + "".join(f"f {a}/1 {b}//2 {c} {d}\n" for a, b, c, d in quads)
    )
    for file in ("binary.stl", "text.stl", "sides.obj"):
        path = tmp_path / "mesh.xml"
        path.write_text(f"""<mujoco><asset><mesh name="m" file="{file}"/></asset><worldbody><body name="b">
          <freejoint/><geom type="mesh" mesh="m" pos="1 0 0" euler="0 90 0"/></body></worldbody></mujoco>""")
        body = System.from_file(path).description.bodies[0]
        assert body.inertia.mass == pytest.approx(48.0, rel=1e-6)  # corners in float32
        moments = 48.0 / 12 * np.diag([0.36, 0.16, 0.04])
        np.testing.assert_allclose(np.array(body.inertia.moments), moments, rtol=1e-6, atol=1e-6)
        name, points, _ = System.from_file(path).drawing.meshes[0]
        assert name == "b"
        np.testing.assert_allclose(points.numpy().max(0), [0.3, 0.2, 0.1], atol=1e-6)
    path.write_text("""<robot name="r"><link name="l">
      <inertial><mass value="1"/><inertia ixx="1" iyy="1" izz="1"/></inertial>
      <visual><geometry><mesh filename="package://r/sides.obj" scale="2 2 2"/></geometry></visual></link></robot>""")
    robot = System.from_file(path, base="floating")
    assert float(robot.drawing.meshes[0][1].max()) == pytest.approx(0.6)


def test_a_mesh_in_the_file_is_that_of_mujoco(tmp_path):
    path = tmp_path / "pyramid.xml"
    path.write_text("""<mujoco><asset><mesh name="pyramid" inertia="exact" vertex="0 0 0  0.25 0 0  0 0.375 0  0 0 0.25"
      scale="1 0.5 2" face="0 2 1  0 1 3  0 3 2  1 2 3" refpos="0.1 0 0" refquat="0.9 0.1 0.2 0.3"/></asset>
      <worldbody><body name="b" pos="0 0 1"><joint axis="0.2 1 0"/>
        <geom type="mesh" mesh="pyramid" pos="0.02 0.03 -0.2" euler="20 0 30" density="3000"/></body></worldbody>
      </mujoco>""")
    robot = System.from_file(path)
    twin = Twin(robot, path)
    twin.start(0)
    x, v, a = torch.from_numpy(twin.state())
    # MuJoCo keeps meshes in float32.
    assert float(robot.kinetic(torch.stack([x, v]))) == pytest.approx(twin.data.energy[1], rel=1e-5)
    torch.testing.assert_close(robot.field(torch.stack([x, v]))[1], a, rtol=1e-4, atol=1e-5)


def test_capsules_and_shapes_have_the_mass_of_their_meshes(tmp_path):
    """The closed formulas against exact integration over fine meshes of the same solids."""
    from chnn.formats.shapes import Shape, solid
    from chnn.mechanics import from_mesh
    from chnn.systems.robot import mesh_of

    r, half = 0.3, 0.5
    bend = np.linspace(0.0, np.pi / 2, 60)
    cap = [(r * np.sin(a), half + r * np.cos(a)) for a in bend]
    fine = from_mesh(*lathe([(x, -z) for x, z in cap] + cap[::-1], sides=400), density=2.0)
    exact = solid(Shape("capsule", (r, half), np.zeros(3), np.eye(3)), density=2.0)
    assert exact.mass == pytest.approx(fine.mass, rel=1e-3)  # the square of the angle between its sides
    np.testing.assert_allclose(np.diag(exact.moments), np.diag(np.array(fine.moments)), rtol=2e-3)
    for kind, size in (("box", (0.1, 0.2, 0.3)), ("ellipsoid", (0.1, 0.2, 0.3)), ("cylinder", (0.1, 0.4)),
                       ("capsule", (0.1, 0.4)), ("sphere", (0.2,))):  # fmt: skip
        shape = Shape(kind, size, np.zeros(3), np.eye(3))
        drawn = from_mesh(*mesh_of(shape), density=1.0)
        assert 0.9 < drawn.mass / solid(shape, density=1.0).mass <= 1.0 + 1e-9  # the drawn one lies within


LINK = '<link name="{}"><inertial><mass value="1"/><inertia ixx="1" iyy="1" izz="1"/></inertial>{}</link>'


def two_links(joint: str, more: str = "") -> str:
    return (
        f'<robot name="two"><link name="world"/>{LINK.format("b", more)}\n<joint name="j" {joint}<parent link="world"/>'
        '<child link="b"/></joint></robot>'
    )


def body(inside: str, around: str = "") -> str:
    return f'<mujoco>{around}<worldbody>\n<body name="b">{inside}</body></worldbody></mujoco>'


BOX = '<geom type="box" size="1 1 1"/>'
BAD = {
    "no-xml": ("robot", r"robot.xml:1: is not well-formed XML"),
    "entity": ('<!DOCTYPE r [<!ENTITY a "aa">]><robot>&a;</robot>', "declares a document type or an entity"),
    "external": ('<!DOCTYPE r SYSTEM "chart.dtd"><robot/>', "declares a document type or an entity"),
    "deep": ("<mujoco><worldbody>" + "<body>" * 300 + "</body>" * 300 + "</worldbody></mujoco>", "deeper than 200"),
    "other": ("<sdf/>", r"<sdf> is neither <robot> \(URDF\) nor <mujoco> \(MJCF\)"),
    "empty": ("<mujoco/>", "no link that moves"),
    "no-links": ("<robot/>", "has no <link>"),
    "tag": ("<mujoco><worlbody/></mujoco>", r"robot.xml:1: <worlbody> in <mujoco>: .*did you mean 'worldbody'"),
    "attribute": (body('<geom tyype="box"/>'), r"robot.xml:2: <geom> unknown attribute 'tyype': did you mean 'type'"),
    "number": (body('<joint axis="0 0 up"/>' + BOX), r'<joint> expects numbers in axis=, got "0 0 up"'),
    "nan": (body('<joint damping="nan"/>' + BOX), r'expects finite numbers in damping=, got "nan"'),
    "count": (body('<joint axis="0 1"/>' + BOX), r"expects 3 numbers in axis=, got 2"),
    "zero-axis": (body('<joint axis="0 0 0"/>' + BOX), "expects a direction in axis=, got the zero vector"),
    "zero-quat": (body('<joint/><geom type="box" size="1 1 1" quat="0 0 0 0"/>'), "expects directions in quat="),
    "negative-damping": (body('<joint damping="-1"/>' + BOX), "damping and stiffness of at least 0, got -1"),
    "negative-mass": (body('<joint/><inertial pos="0 0 0" mass="-1" diaginertia="1 1 1"/>'), "of at least 0, got -1"),
    "negative-size": (body('<joint/><geom type="box" size="1 -1 1"/>'), r"expects 3 positive lengths of a box"),
    "massless": (body("<joint/>"), r'robot.xml:2: <body name="b"> moves and has no mass'),
    "impossible-moments": (body('<joint/><inertial pos="0 0 0" mass="1" diaginertia="1 1 3"/>'),
                           r'<body name="b"> has moments of inertia 1, 1, 3, which no body has'),
    "thin": (body('<joint/><inertial pos="0 0 0" mass="1" diaginertia="1 1 2"/>'), "a mass without thickness"),
    "negative-moments": (body('<joint/><inertial pos="0 0 0" mass="1" diaginertia="1 1 -1"/>'), "expected three"),
    "joint-in-world": ("<mujoco><worldbody><joint/></worldbody></mujoco>", "stands in the world"),
    "free-inside": (body(f'<joint/>{BOX}<body><freejoint/>{BOX}</body>'), "is free, but its body stands in another"),
    "free-and-more": (body("<freejoint/><joint/>" + BOX), "one, two or three hinges"),
    "slide-inside": (body(f'<joint/>{BOX}<body name="c"><joint type="slide"/>{BOX}</body>',
                          '<option><flag contact="disable"/></option>'), "slides on a body that moves"),
    "slide-late": (body('<joint/><joint type="slide"/>' + BOX), "slides after a joint that turns"),
    "same-slide": (body('<joint type="slide"/><joint type="slide"/>' + BOX), "move along the same directions"),
    "four-hinges": (body('<joint/><joint axis="1 0 0"/><joint axis="0 1 0"/><joint/>' + BOX), "one, two or three"),
    "apart": (body('<joint/><joint axis="1 0 0" pos="0 0 1"/><joint axis="0 1 0"/>' + BOX), "miss one another"),
    "same-axes": (body("<joint/><joint/>" + BOX), "turn about the same axes"),
    "class": (body('<joint class="x"/>' + BOX), "names the class 'x', which is not there"),
    "mesh-name": (body('<joint/><geom type="mesh" mesh="m"/>'), "names the mesh 'm', which is not there"),
    "mesh-file": ('<mujoco><asset>\n<mesh name="m" file="no.stl"/></asset><worldbody><body name="b"><freejoint/>'
                  '<geom type="mesh" mesh="m"/></body></worldbody></mujoco>',
                  r'robot.xml:2: <mesh name="m"> cannot read the mesh: no file .*no.stl'),
    "hollow": (body('<joint/><geom type="box" size="1 1 1" shellinertia="true"/>'), "is hollow"),
    "hfield": (body('<joint/><geom type="hfield" hfield="h"/>'), "is a hfield"),
    "mocap": ('<mujoco><worldbody><body mocap="true"/></worldbody></mujoco>', "is moved from outside"),
    "include": ('<mujoco><include file="robot.xml"/></mujoco>', "is being read already"),
    "include-outside": ('<mujoco><include file="../x.xml"/></mujoco>', "from outside the folder"),
    "global": ('<mujoco><compiler coordinate="global"/></mujoco>', "which MuJoCo gave up"),
    "eulerseq": ('<mujoco><compiler eulerseq="xy"/></mujoco>', "three letters out of xyzXYZ"),
    "total-mass": ('<mujoco><compiler settotalmass="2"/></mujoco>', "has settotalmass="),
    "body-name": (body(BOX, '<equality><connect body1="c" anchor="0 0 0"/></equality>'), "names the body 'c'"),
    "self-loop": (body("<joint/>" + BOX, '<equality><connect body1="b" body2="b" anchor="0 0 0"/></equality>'),
                  "ties a body to itself"),
    "kind": (two_links('type="revolut">'), r"<joint name=\"j\"> unknown type= 'revolut': did you mean 'revolute'"),
    "link": (two_links('type="fixed">').replace('child link="b"', 'child link="c"'), "names the link 'c'"),
    "two-roots": (f'<robot>{LINK.format("a", "")}{LINK.format("b", "")}</robot>', "exactly one link"),
    "twice": (f'<robot>{LINK.format("a", "")}{LINK.format("a", "")}</robot>', "has the name of"),
    "base": (f'<robot>{LINK.format("a", "")}</robot>', "give base='fixed' or base='floating'"),
    "urdf-mass": ('<robot><link name="a"><inertial><mass value="-1"/></inertial></link></robot>', "0 for link 'a'"),
    "urdf-nan": ('<robot><link name="a"><inertial><mass value="nan"/></inertial></link></robot>', "finite numbers"),
    "urdf-damping": (two_links('type="continuous"><dynamics damping="-2"/>'), "damping of at least 0, got -2"),
    "urdf-massless": (two_links('type="continuous">').replace('value="1"', 'value="0"'), "without mass; give it mass"),
    "urdf-shape": (two_links('type="continuous">', '<visual><geometry><box size="1 0 1"/></geometry></visual>'),
                   "3 positive lengths of a box"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_refused_by_line(tmp_path, name):
    text, message = BAD[name]
    path = tmp_path / "robot.xml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        System.from_file(path)


LEFT_OUT = {
    "limits": (body('<joint range="0 1"/>' + BOX), "<joint> stops the joint"),
    "contacts": (body(f'<joint/>{BOX}<body><joint/>{BOX}<body><joint/>{BOX}</body></body>'), "<geom> may touch"),
    "actuators": (body("<joint/>" + BOX, '<actuator><motor joint="b hinge"/></actuator>'), "<motor> drives a joint"),
    "sensors": (body("<joint/>" + BOX, '<sensor><clock name="c"/></sensor>'), "measures"),
    "tendons": (body("<joint/>" + BOX, '<tendon><fixed name="f"/></tendon>'), "pull"),
    "equality": (body("<joint/>" + BOX, '<equality><joint joint1="b hinge"/></equality>'), "ties coordinates"),
    "mimic": (two_links('type="continuous"><mimic joint="k"/>'), "makes the joint 'j' follow another"),
    "friction": (two_links('type="continuous"><dynamics friction="1"/>'), "has dry friction"),
    "damping": (body('<joint damping="1"/><joint axis="1 0 0"/>' + BOX), "damps one of 2 hinges"),
    "springs": (body('<joint type="ball" stiffness="1"/>' + BOX), "has a spring on a ball joint"),
    "armature": (body('<joint armature="1"/>' + BOX), "has the inertia of a rotor"),
    "fluid": (body("<joint/>" + BOX, '<option density="1.2"/>'), "puts the bodies into a medium"),
    "gravcomp": (body("<joint/>" + BOX).replace('name="b"', 'name="b" gravcomp="1"'), "is held against gravity"),
    "meshes": (two_links('type="continuous">', '<visual><geometry><mesh filename="a.stl"/></geometry></visual>'),
               "names a.stl, which is not there"),
    "extensions": (two_links('type="continuous">').replace("<link", "<gazebo/><link", 1), "is for another program"),
}  # fmt: skip


@pytest.mark.parametrize("feature", FEATURES)
def test_what_is_not_simulated_is_named_and_can_be_left_out(tmp_path, feature):
    text, message = LEFT_OUT[feature]
    path = tmp_path / "robot.xml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"robot.xml:\d: .*{message}.*ignore=\('{feature}',\)"):
        System.from_file(path)
    robot = System.from_file(path, ignore=(feature,))
    assert robot.field(robot.sample(2, generator=generator())).isfinite().all()


def test_one_error_names_all_that_is_left_out(tmp_path):
    path = tmp_path / "robot.xml"
    path.write_text(two_links('type="revolute"><limit lower="-1" upper="1"/><dynamics friction="1"/>',
                              '<collision><geometry><sphere radius="1"/></geometry></collision>'))  # fmt: skip
    with pytest.raises(UserError, match=r"ignore=\('contacts', 'friction', 'limits'\)"):
        System.from_file(path)
    with pytest.raises(UserError, match="did you mean 'limits'"):
        System.from_file(path, ignore=("limit",))
    with pytest.raises(UserError, match="no file"):
        System.from_file(tmp_path / "absent.xml")
    with pytest.raises(UserError, match="expected base 'fixed' or 'floating'"):
        System.from_file(path, base="loose", ignore=tuple(FEATURES))


def test_a_root_without_mass_is_held_whatever_its_moments(tmp_path):
    """As in the cart-pole that comes with PyBullet: a rail of mass 0 with moments, a sliding cart, a pole."""
    path = tmp_path / "robot.xml"
    rail = LINK.format("rail", "").replace('value="1"', 'value="0"')
    path.write_text(f"""<robot name="cart">{rail}{LINK.format("cart", "<contact/>")}{LINK.format("pole", "")}
      <joint name="slide" type="prismatic"><parent link="rail"/><child link="cart"/></joint>
      <joint name="turn" type="continuous"><parent link="cart"/><child link="pole"/><axis xyz="0 1 0"/></joint>
      </robot>""")
    with pytest.raises(UserError, match=r"<contact> says how link 'cart' touches.*ignore=\('contacts',\)"):
        System.from_file(path)
    robot = System.from_file(path, ignore="contacts")
    assert robot.parameters()["ignore"] == ["contacts"]
    assert robot.angle_names == ("slide", "turn") and robot.description.degrees_of_freedom == 2


def test_flags_take_away_what_would_be_refused(tmp_path):
    """What the file itself turns off is not missed; gravity too."""
    path = tmp_path / "robot.xml"
    path.write_text(body(f'<joint range="0 1" stiffness="1" damping="2" frictionloss="1"/>{BOX}<body><joint/>{BOX}'
                         '</body>',
                         '<option><flag contact="disable" limit="disable" passive="disable" frictionloss="disable" '
                         'gravity="disable"/></option>'))  # fmt: skip
    robot = System.from_file(path)
    z = robot.sample(1, generator=generator())
    assert float(robot.force(z[:, 0], z[:, 1]).abs().max()) == 0.0
    assert read_robot(path, gravity=(0.0, 1.0, 0.0))[0].gravity.tolist() == [
        0.0,
        1.0,
        0.0,
    ]  # asked for in so many words


def test_includes_and_frames_of_fixed_bodies(tmp_path):
    (tmp_path / "arm.xml").write_text(f"<mujoco><body name='in' pos='0 0 1'><joint/>{BOX}</body></mujoco>")
    path = tmp_path / "robot.xml"
    path.write_text(
        "<mujoco><worldbody><body name='post' pos='1 0 0'><include file='arm.xml'/></body></worldbody></mujoco>"
    )
    robot = System.from_file(path)
    torch.testing.assert_close(robot.description.reference[0], torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))


def test_a_robot_that_stands_has_its_rest_below(tmp_path):
    path = tmp_path / "robot.xml"
    path.write_text(body('<joint axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0 0 1" size="0.1"/>'))
    robot = System.from_file(path)
    assert float(robot.rest()[0, 0, 2]) == pytest.approx(-0.5, abs=1e-6)
    assert (robot.energy_scale(robot.sample(3, generator=generator())) > 0).all()
    with pytest.raises(UserError, match=r"a number for the coordinate 'b hinge', got tensor\(\[1., 1., 1.\]\)"):
        robot.state({robot.angle_names[0]: torch.ones(3)})


def test_the_command_simulates_a_file(tmp_path, capsys, monkeypatch):
    (tmp_path / "cart.xml").write_text(CART)
    monkeypatch.chdir(tmp_path)
    flags = ["--trajectories", "2", "--horizon", "0.2", "--no-animation"]
    assert main(["simulate", "--file", "cart.xml", *flags, "--out", "run"]) == 0
    shown = capsys.readouterr().out
    assert "relative energy change, damped" in shown and "'file': 'cart.xml'" in shown and "digest" not in shown
    monkeypatch.chdir("/")
    run = load_run(tmp_path / "run")
    assert run.system.angle_names == ("rail", "pivot", "px", "pz", "turn", "elbow")
    energy = run.system.energy(run.z)
    assert (energy[:, -1] < energy[:, 0]).all()  # damped
    # Layout does not matter, numbers do.
    (tmp_path / "cart.xml").write_text(CART.replace("<worldbody>", "<!-- the same -->\n<worldbody>"))
    load_run(tmp_path / "run")
    (tmp_path / "cart.xml").write_text(CART.replace('mass="1"', 'mass="2"'))
    with pytest.raises(UserError, match="has changed since its digest was taken"):
        load_run(tmp_path / "run")

    def fails(*argv: str) -> str:
        capsys.readouterr()
        assert main(["simulate", *argv, "--out", str(tmp_path / "other")]) == 2
        assert not (tmp_path / "other").exists()
        return " ".join(capsys.readouterr().err.split())

    (tmp_path / "limited.xml").write_text(body('<joint range="0 1"/>' + BOX))
    limited = str(tmp_path / "limited.xml")
    assert "limited.xml:2: <joint> stops the joint" in fails("--file", limited)
    assert "leave it out with --ignore limits: joints" in fails("--file", limited)
    assert "did you mean 'limits'" in fails("--file", limited, "--ignore", "limit")
    assert "either SYSTEM or --file" in fails("rotor", "--file", limited)
    assert "give one" in fails("rotor", "--ignore", "limits")
    assert "no file" in fails("--file", str(tmp_path / "absent.xml"))
    assert "a robot needs a file: chnn simulate --file" in fails("robot")
    assert "robot has no parameter --links" in fails("--file", limited, "--links", "3")
    assert "or --file ROBOT.xml" in fails()


ROD = """<mujoco model="rod"><compiler inertiafromgeom="true"/><worldbody><body name="rod" pos="0 0 1">
  <joint name="j" axis="0 1 0"{}/><geom type="box" size="0.02 0.03 0.3" pos="0 0 -0.3" contype="0" conaffinity="0"/>
  </body></worldbody></mujoco>"""


@pytest.mark.parametrize("gravity", [1.62, (0.5, 0.0, -1.62), np.array([0.5, 0.0, -1.62])])
def test_a_robot_keeps_its_own_gravity_in_a_stored_run(tmp_path, gravity):
    """Its acceleration from the stored run is that of the moon, also after resuming."""
    path, out = tmp_path / "rod.xml", tmp_path / "run"
    path.write_text(ROD.format(' range="-1 1"'))
    robot = System.from_file(path, gravity=gravity, ignore=("limits",))
    settings = Settings("robot", arguments_of(robot), trajectories=2, dt=0.1, horizon=0.2)
    simulate_run(settings, out, system=robot)
    simulate_run(settings, out, system=robot)  # nothing left to do, and nothing that differs
    again = load_run(out).system
    z = robot.sample(3, generator=generator())
    torch.testing.assert_close(again.field(z), robot.field(z), rtol=0, atol=0)
    forces = again.description.forces
    assert [type(force).__name__ for force in forces] == ["Gravity"]
    expected = [0.0, 0.0, -1.62] if np.ndim(gravity) == 0 else [0.5, 0.0, -1.62]
    assert forces[0].acceleration.tolist() == expected


def test_settings_of_another_robot_are_refused(tmp_path):
    """A system with its own gravity beside settings that would make it with another."""
    path = tmp_path / "rod.xml"
    path.write_text(ROD.format(""))
    settings = Settings("robot", {"file": str(path)}, trajectories=1, dt=0.1, horizon=0.2)
    with pytest.raises(UserError, match=r"gravity.*arguments_of"):
        simulate_run(settings, tmp_path / "run", system=System.from_file(path, gravity=1.62))
    simulate_run(settings, tmp_path / "run", system=System.from_file(path))


def test_a_model_learns_a_robot_of_a_file(tmp_path, capsys):
    path, out = tmp_path / "rod.xml", tmp_path / "run"
    path.write_text(ROD.format(' damping="0.1"'))
    flags = ["--trajectories", "4", "--test-trajectories", "2", "--horizon", "0.3", "--dt", "0.05", "--steps", "3",
             "--batch-size", "2", "--hidden", "4"]  # fmt: skip
    assert main(["train", "--file", str(path), *flags, "--out", str(out)]) == 2
    assert "RotationalDamping" in capsys.readouterr().err
    path.write_text(ROD.format(' range="-1 1"'))
    assert main(["train", "--file", str(path), *flags, "--out", str(out)]) == 2
    assert "--ignore limits" in capsys.readouterr().err
    assert main(["train", "--file", str(path), "--ignore", "limits", *flags, "--out", str(out)]) == 0
    assert main(["evaluate", str(out)]) == 0
    assert main(["train", "rotor", "--file", str(path), *flags, "--out", str(tmp_path / "two")]) == 2
    assert "either SYSTEM or --file" in capsys.readouterr().err

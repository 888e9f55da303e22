"""Every check and every build of the monorepo, one nox session each; ``nox -l`` lists them.

``nox`` alone runs lint, the tests of the members and the integration tests. A session makes its own
environment: the tests of a member see that member and the core, never a sibling, and prove it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable
from email import message_from_string
from pathlib import Path

import nox

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT / "integration_tests"))  # nox loads this file without its folder on the path

from members import Member, members  # noqa: E402

nox.needs_version = ">=2025.5.1"  # the first with `requires`
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "tests", "integration"]

DIST = ROOT / "dist"
DATA = ROOT.parent / "shared" / "data"  # real data beside a checkout; absent in a public clone
KEEP_MEMORY = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")  # settings of glibc
PARALLEL = ("-n", "auto", "--maxprocesses", "8", "--dist", "worksteal")  # of pytest-xdist; `-- -n 0` for one process
MINIMUM_COVERAGE = 85  # per cent of lines and branches, all members together

MEMBERS = members(ROOT)
CORE = MEMBERS[0]

each_member = nox.parametrize("member", [nox.param(member, id=member.name) for member in MEMBERS])

# --- checks that `nox` alone runs ---


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff's rules and format; imports point down; members listed; one version per name in the lock; no local paths."""
    session.install(*locked("ruff", "import-linter"))
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", "--check", ".")
    session.run("python", "integration_tests/check_architecture.py")
    sources = os.pathsep.join(str(ROOT / member.folder / "src") for member in MEMBERS)
    session.run("lint-imports", env={"PYTHONPATH": sources})  # read as text: no member is installed or run


@nox.session
@each_member
def tests(session: nox.Session, member: Member) -> None:
    """The tests of one member, in an environment that holds it and the core only."""
    install_editable(session, member)
    assert_alone(session, member)
    session.run("pytest", *selection(session, f"{member.folder}/tests"), env=test_environment())


@nox.session
def integration(session: nox.Session) -> None:
    """What crosses between the packages, the README's examples, and the tools of this repository."""
    install_editable(session, *MEMBERS)
    session.install(*locked("griffelib", "import-linter", "latex2mathml"))
    session.run("pytest", *selection(session, "integration_tests"), env=test_environment())


# --- checks on request ---


@nox.session(default=False)
def typecheck(session: nox.Session) -> None:
    """Pyright over the sources of all members, the tools and this file."""
    install_editable(session, *MEMBERS)
    session.install(*locked("pyright", "nox", "uv", "griffelib", "latex2mathml"), "pyright[nodejs]")
    session.run("pyright", *session.posargs)


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """All tests in one environment under coverage; fails below the threshold."""
    install_editable(session, *MEMBERS)
    session.install(*locked("coverage", "griffelib", "import-linter", "latex2mathml"))
    session.run("coverage", "erase")
    folders = [f"{member.folder}/tests" for member in MEMBERS]
    session.run(
        "coverage", "run", "-m", "pytest", *folders, "integration_tests", *session.posargs, env=test_environment()
    )
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report", f"--fail-under={MINIMUM_COVERAGE}")


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the site strictly into ``site/``: a broken link or an undocumented public name fails."""
    session.install(*locked("zensical", "mkdocstrings-python", "griffelib", "latex2mathml"))
    session.run("python", "docs/check.py")
    session.run("zensical", "build", "--clean", "--strict")


@nox.session(default=False)
@each_member
def bench(session: nox.Session, member: Member) -> None:
    """The benchmarks of one member, each against a baseline in the same run; installs the peers it names."""
    install_editable(session, member, extras=("test", *({"bench"} & member.extras.keys())))
    # One thread, unless asked otherwise: ratios then depend neither on the machine's cores nor on what else runs.
    # Freed memory is kept: to be given fresh pages for every large result costs more than most arithmetic.
    settings = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **dict.fromkeys(KEEP_MEMORY, str(2**33))}
    environment = {name: os.environ.get(name, value) for name, value in settings.items()}
    folder = f"{member.folder}/benchmarks"
    options = ("-s", "--benchmark-columns=min,median,rounds")
    session.run("pytest", *selection(session, folder, options), env=environment)


@nox.session(default=False)
def demo(session: nox.Session) -> None:
    """The main job of each package in a small setting, from nothing to ``demo/report.html``."""
    install_editable(session, *MEMBERS)
    session.run("python", "integration_tests/demo.py", *session.posargs, env=one_thread())


# --- building and installing ---


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """The sdists and, from each sdist alone, its wheel, in ``dist/``; their metadata is checked."""
    uses_uv = session.venv_backend == "uv"
    session.install(f"build[{'uv' if uses_uv else 'virtualenv'}]")
    installer = ["--installer", "uv"] if uses_uv else []
    shutil.rmtree(DIST, ignore_errors=True)
    # Outside the tree: nothing that lies around a member can slip into its distribution, or be missed.
    with tempfile.TemporaryDirectory() as stage:
        for member in MEMBERS:
            source = Path(stage) / member.name
            stage_member(member, source)
            # Without --sdist or --wheel, build makes the sdist and then the wheel from the unpacked sdist, each in
            # an isolated environment: the wheel is the proof that the sdist rebuilds alone.
            session.run("python", "-m", "build", *installer, "--outdir", str(DIST), str(source), silent=True)
            check_distribution(session, member, source)


@nox.session(default=False, reuse_venv=False, requires=["build"])
@each_member
def install_check(session: nox.Session, member: Member) -> None:
    """Install one wheel alone in a clean environment, run its command and one line of use."""
    # The core's wheel by path too: an index may know another distribution of that name.
    wheels = dict.fromkeys(str(wheel_of(each)) for each in (CORE, member))
    session.install("--find-links", str(DIST), *wheels)
    check_installed(session, member)


@nox.session(default=False, reuse_venv=False, venv_backend="venv")
@each_member
def pip_install(session: nox.Session, member: Member) -> None:
    """Plain pip from a fresh clone: by folder, and by ``git+file://...#subdirectory=``; each brings the core."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder).resolve() / "clone"
        snapshot(session, clone)
        install_third_party(session, member, clone)
        for requirement in (f"{clone}/{member.folder}", f"git+{clone.as_uri()}#subdirectory={member.folder}"):
            session.run("python", "-m", "pip", "install", "--quiet", requirement)
            check_installed(session, member)
            session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", *own_names(member))


# --- helpers ---


def locked(*names: str) -> list[str]:
    """Requirements that pin ``names`` as ``poetry.lock`` does, so that a tool's release breaks no build."""
    lock = tomllib.loads((ROOT / "poetry.lock").read_text(encoding="utf-8"))
    versions = {package["name"]: package["version"] for package in lock["package"]}
    return [f"{name}=={versions[name]}" for name in names]


def install_editable(session: nox.Session, *members: Member, extras: Iterable[str] = ("test",)) -> None:
    """Install ``members`` with their ``extras`` and the core, editable.

    The first install resolves what each member brings, the core included; the second only points the
    members' own names at the working tree, so that an edit is seen without another install.
    """
    session.install(*(f"./{member.folder}[{','.join(extras)}]" for member in members))
    own = dict.fromkeys((CORE, *members))
    session.install("--no-deps", *(argument for member in own for argument in ("-e", f"./{member.folder}")))


def selection(session: nox.Session, folder: str, options: Iterable[str] = PARALLEL) -> list[str]:
    """Arguments of pytest: ``options`` and what follows ``--``; ``folder`` too, unless that names a path to run.

    A word counts as a path if it has a slash or ends in ``.py`` and the file exists: ``-k docs`` names no folder.
    """
    paths = [word.partition("::")[0] for word in session.posargs]
    paths = [path for path in paths if ("/" in path or path.endswith(".py")) and (ROOT / path).exists()]
    return [*([] if paths else [folder]), *options, *session.posargs]


def one_thread() -> dict[str, str]:
    """One thread of torch, unless asked otherwise."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def test_environment() -> dict[str, str]:
    """``LIE_TEST_DATA`` where the real data lies beside the checkout, bytecode, and one thread unless asked otherwise.

    The tests' tensors are small: a second thread gains nothing, and on a busy machine waits for its turn in every step.
    """
    environment = one_thread()
    environment["PYTHONDONTWRITEBYTECODE"] = ""  # tests start many programs: bytecode makes each import thrice as quick
    if DATA.is_dir() and "LIE_TEST_DATA" not in os.environ:
        environment["LIE_TEST_DATA"] = str(DATA)
    return environment


def assert_alone(session: nox.Session, member: Member) -> None:
    """Import ``member`` and the core; fail if a sibling can be imported too."""
    present = dict.fromkeys((CORE.name, member.name))
    absent = [other.name for other in MEMBERS if other.name not in present]
    session.run("python", "-I", str(ROOT / "integration_tests/check_alone.py"), ",".join(present), ",".join(absent))


def check_installed(session: nox.Session, member: Member) -> None:
    """``member`` is alone, its command answers ``--help``, and its one line of use works; all away from the tree."""
    with tempfile.TemporaryDirectory() as folder, session.chdir(folder):
        assert_alone(session, member)
        if not member.is_core:
            session.run(member.name, "--help", silent=True)  # shown if it fails
        session.run("python", "-I", "-c", member.smoke_test)


def own_names(member: Member) -> list[str]:
    """The distributions that ``member`` brings from this repository."""
    return list(dict.fromkeys((CORE.distribution, member.distribution)))


def core_pin() -> str:
    """The range of core releases that this tree works with, such as ``>=0.1,<0.2``."""
    project = CORE.project
    major, minor = project["version"].split(".")[:2]
    return f">={major}.{minor},<{major}.{int(minor) + 1}"


def stage_member(member: Member, target: Path) -> None:
    """Copy ``member`` to ``target`` with the licence, and with the core's release in place of its path."""
    shutil.copytree(ROOT / member.folder, target, ignore=shutil.ignore_patterns("__pycache__", "dist", ".*"))
    shutil.copy(ROOT / "LICENSE", target)
    if member.is_core:
        return
    manifest = target / "pyproject.toml"
    text = manifest.read_text(encoding="utf-8")
    text, count = re.subn(r"(?m)^lie-core = \{ *path.*$", f'lie-core = "{core_pin()}"', text)
    if count != 1:
        raise ValueError(f"expected one line 'lie-core = {{ path = ... }}' in {member.folder}, got {count}")
    manifest.write_text(text, encoding="utf-8")


def wheel_of(member: Member) -> Path:
    """The one wheel of ``member`` in ``dist/``."""
    (wheel,) = DIST.glob(f"{member.distribution.replace('-', '_')}-*.whl")
    return wheel


def check_distribution(session: nox.Session, member: Member, staged: Path) -> None:
    """Fail unless the wheel holds every staged source file and both archives pin the core's release."""
    wheel = wheel_of(member)
    sdist = DIST / wheel.name.replace("-py3-none-any.whl", ".tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        (name,) = (name for name in held if name.endswith(".dist-info/METADATA"))
        metadata = {wheel.name: archive.read(name).decode()}
    with tarfile.open(sdist) as archive:
        information = archive.extractfile(f"{sdist.name.removesuffix('.tar.gz')}/PKG-INFO")
        metadata[sdist.name] = information.read().decode() if information else ""
    source = staged / "src"
    found = (path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    files = {path.relative_to(source).as_posix() for path in found}
    if missing := sorted(files - held):
        session.error(f"{wheel.name} lacks {missing}")
    if not any(name.endswith("LICENSE") for name in held):
        session.error(f"{wheel.name} lacks the LICENSE")
    wanted = [] if member.is_core else [CORE.distribution + core_pin()]
    for name, text in metadata.items():
        requirements = message_from_string(text).get_all("Requires-Dist") or []
        pins = [re.sub(r"[\s()]", "", line) for line in requirements if line.startswith(CORE.distribution)]
        if pins != wanted or any("file:" in line for line in requirements):
            session.error(f"expected {wanted} and no 'file:' in the requirements of {name}, got {requirements}")
    session.log(
        f"{wheel.name} and {sdist.name}: {len(files)} source files, {', '.join(wanted) or 'no member'} required"
    )


def snapshot(session: nox.Session, clone: Path) -> None:
    """Make ``clone`` a git repository with one commit that holds this working tree as it would be committed."""
    command = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
    listed = session.run(*command, external=True, silent=True, log=False)
    for name in str(listed).splitlines():
        if (ROOT / name).is_file():  # a file deleted and not yet committed is still listed
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    author = ("-c", "user.name=nox", "-c", "user.email=nox@example.org")
    for arguments in (("init", "--quiet"), ("add", "--all"), (*author, "commit", "--quiet", "--message", "snapshot")):
        session.run("git", "-C", str(clone), *arguments, external=True, log=False)


def install_third_party(session: nox.Session, member: Member, clone: Path) -> None:
    """Fill the session's environment with what ``member`` needs from others, by uv where it is there.

    What is left to pip is what the session tests: to build the member and the core, and to resolve them.
    """
    folder = f"{clone}/{member.folder}"
    python = str(Path(session.bin) / ("python.exe" if sys.platform == "win32" else "python"))
    try:
        from uv import find_uv_bin

        session.run(find_uv_bin(), "pip", "install", "--quiet", "--python", python, folder, external=True)
    except (ImportError, FileNotFoundError):
        session.run(python, "-m", "pip", "install", "--quiet", folder)
    session.run(python, "-m", "pip", "uninstall", "--quiet", "--yes", *own_names(member))

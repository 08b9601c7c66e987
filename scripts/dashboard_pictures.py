"""Draw every Grafana dashboard once, from real jobs, with Grafana's own components: docs/images/dashboard-*.png.

    scripts/dashboard_pictures.py [--seconds N] [--again]

Four simulated jobs run for so long (150 s), each with its agent, into a VictoriaMetrics; every panel's own expression
is asked, and the answers are drawn by `@grafana/ui` in a headless Chromium. Needs `make tools` and npm. The store's
data stays in build/pictures/run: with --again it is asked and drawn anew, and no job runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rankscope.errors import RankscopeError

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "dashboards/pictures"
BUILD = ROOT / "build/pictures"
IMAGES = ROOT / "docs/images"
WIDTH_PX = 1500
#: Faults begin after a minute; no job of the pictures takes longer than a scenario may.
LEAST_SECONDS, MOST_SECONDS = 100, 500
#: Of Grafana's grid: a row of it and the gap below, and the title above all.
_UNIT_PX, _HEAD_PX = 38, 56
_CHROMIUM = (
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    # Icons are files beside the page.
    "--allow-file-access-from-files",
    # As much of the page's own time as it needs to draw.
    "--virtual-time-budget=10000",
    "--enable-logging=stderr",
)


def main() -> int:
    """0 when every picture is drawn, 2 where something that it needs is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=_seconds, default=150.0, help="how long the jobs run")
    parser.add_argument("--again", action="store_true", help="ask the store of the last time")
    chosen = parser.parse_args()
    missing = [name for name in ("npm", "chromium") if shutil.which(name) is None]
    if missing:
        print(
            f"dashboard_pictures: {' and '.join(missing)} not on PATH: install Node.js, and `make tools NAMES=chromium`"
        )
        return 2
    try:
        _draw_all(chosen.seconds, again=chosen.again)
    except RankscopeError as error:
        print(f"dashboard_pictures: {error}")
        return 2
    except subprocess.CalledProcessError as error:
        print(f"dashboard_pictures: {Path(error.cmd[0]).name} ended with {error.returncode}")
        return 2
    return 0


def _seconds(text: str) -> float:
    seconds = float(text)
    if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"jobs that show something run {LEAST_SECONDS} to {MOST_SECONDS} s")
    return seconds


def _draw_all(seconds: float, *, again: bool) -> None:
    bundle = _bundle()
    sys.path.append(str(ROOT))  # dashboards/ is not part of the package
    from dashboards.pictures.collect import TIME, pages, run_jobs

    run = BUILD / "run"
    if not again or not (run / TIME).exists():
        shutil.rmtree(run, ignore_errors=True)
        run_jobs(run, seconds, print)
    for name, page in pages(run).items():
        print(_draw(name, page, bundle).relative_to(ROOT))


def _bundle() -> Path:
    """The page's script and style, of the packages that package.json pins."""
    BUILD.mkdir(parents=True, exist_ok=True)
    pinned = BUILD / "package.json"
    wanted = (SOURCES / "package.json").read_text()
    if not (BUILD / "node_modules").exists() or pinned.read_text() != wanted:
        pinned.write_text(wanted)
        install = ["npm", "install", "--legacy-peer-deps", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        try:
            subprocess.run(install, cwd=BUILD, check=True)
        except subprocess.CalledProcessError:
            shutil.rmtree(BUILD / "node_modules", ignore_errors=True)
            raise
    shutil.copytree(SOURCES, BUILD / "sources", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.py", "*.json"))
    icons = BUILD / "node_modules/@grafana/ui/dist/public/img"
    shutil.copytree(icons, BUILD / "public/build/img", dirs_exist_ok=True)
    loaders = [f"--loader:.{kind}=empty" for kind in ("svg", "png", "woff2", "ttf")]
    subprocess.run(
        [
            str(BUILD / "node_modules/.bin/esbuild"),
            "sources/page.tsx",
            "--bundle",
            "--minify",
            "--jsx=automatic",
            "--log-level=error",
            '--define:process.env.NODE_ENV="production"',
            "--outfile=page.js",
            *loaders,
        ],
        cwd=BUILD,
        check=True,
    )
    return BUILD / "page.js"


def _draw(name: str, page: dict[str, Any], bundle: Path) -> Path:
    """The picture of one dashboard, as high as its panels reach."""
    grid = max(each["panel"]["gridPos"]["y"] + each["panel"]["gridPos"]["h"] for each in page["panels"])
    html = BUILD / f"{name}.html"
    html.write_text(
        '<!doctype html><html><head><meta charset="utf-8"><link rel="stylesheet" href="page.css"></head>'
        f'<body style="margin: 0"><div id="root"></div><script>window.page = {json.dumps(page)}</script>'
        f'<script src="{bundle.name}"></script>'
    )
    picture = IMAGES / f"dashboard-{name}.png"
    with tempfile.TemporaryDirectory() as profile:
        size = f"--window-size={WIDTH_PX},{grid * _UNIT_PX + _HEAD_PX}"
        files = [f"--user-data-dir={profile}", f"--screenshot={picture}", size, html.as_uri()]
        done = subprocess.run([*_CHROMIUM, *files], check=False, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RankscopeError(f"chromium ended with {done.returncode}: {done.stderr[-500:]}")
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    print(*complaints, sep="\n", end="\n" if complaints else "")
    return picture


if __name__ == "__main__":
    sys.exit(main())

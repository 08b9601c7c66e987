"""`rankscope runbook`: what to do about a class of fault, on a machine that has the package and not its sources."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("fault_class", metavar="[CLASS]", default="")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def runbook(fault_class: str, as_json: bool) -> None:
    """Show the runbook of a CLASS, as reports name it; without one, list the classes."""
    from rankscope.rules import CLASSES
    from rankscope.rules.runbooks import runbook as page_of
    from rankscope.rules.runbooks import runbooks

    if fault_class:
        page = page_of(fault_class.removesuffix(".md").rpartition("/")[2])
        click.echo(json.dumps({"class": fault_class, "text": page}) if as_json else page, nl=as_json)
        return
    titles = {slug: CLASSES[slug].title for slug in runbooks() if slug in CLASSES}
    width = max(map(len, titles))
    lines = [f"{slug:<{width}}  {title}" for slug, title in titles.items()]
    click.echo(json.dumps(titles, indent=2) if as_json else "\n".join(lines))

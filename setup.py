"""The build step that setuptools has no setting for: the zero-code attachment file beside the packages."""

from __future__ import annotations

from setuptools import setup

setup()

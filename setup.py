"""For tools that still run setup.py; everything is in setup.cfg."""

from setuptools import setup

setup()

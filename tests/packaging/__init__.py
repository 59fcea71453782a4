"""Tests of the build backend and of installed packages."""

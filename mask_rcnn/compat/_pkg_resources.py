"""The part of ``pkg_resources`` that Chainer and ChainerCV use, implemented with :mod:`importlib.metadata`."""

from importlib import metadata

from packaging.requirements import Requirement


class ResolutionError(Exception):
    """A requirement is not met."""


class DistributionNotFound(ResolutionError):
    """The distribution is not installed."""


class VersionConflict(ResolutionError):
    """The distribution is installed in another version."""


def get_distribution(name: str) -> metadata.Distribution:
    """Return the installed distribution, which has a ``version``."""
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        raise DistributionNotFound(name) from error


def require(requirement: str) -> None:
    """Raise :class:`ResolutionError` unless ``requirement`` (as in ``'name>=1.0'``) is met."""
    parsed = Requirement(requirement)
    version = get_distribution(parsed.name).version
    if not parsed.specifier.contains(version, prereleases=True):
        raise VersionConflict(f'{parsed.name} {version} is installed, {requirement} is required')


class WorkingSet:
    """The installed distributions, as ``chainer.testing.with_requires`` uses them."""

    def require(self, *requirements: str) -> None:
        """Raise :class:`ResolutionError` unless all ``requirements`` are met."""
        for requirement in requirements:
            require(requirement)

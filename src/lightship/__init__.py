"""lightship: ship the code, not the container.

Deploys Python web services that run under uWSGI and Supervisor in Docker containers. ``docs/explanation/design.md``
is the picture.
"""

from lightship_agent import VERSION as __version__

__all__ = ["__version__"]

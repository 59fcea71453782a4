"""From image files to network inputs."""

"""Images, videos, cameras and addresses as sources of frames, and videos and windows as sinks of drawn frames."""

"""An RTSP server from Debian's packages: `/usr/bin/python3 rtsp_server.py PORT [FPS]`, at /door.

A ball that moves, as Motion JPEG. Run by the system's Python, which has GStreamer's bindings.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402


def main(port: str, fps: str = "10") -> None:
    """Serve until killed."""
    Gst.init(None)
    server = GstRtspServer.RTSPServer(address="127.0.0.1", service=port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_shared(True)
    factory.set_launch(
        "( videotestsrc is-live=true pattern=ball ! "
        f"video/x-raw,format=I420,width=160,height=120,framerate={fps}/1 ! "
        "jpegenc ! rtpjpegpay name=pay0 )"
    )
    server.get_mount_points().add_factory("/door", factory)
    server.attach(None)
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(*sys.argv[1:])

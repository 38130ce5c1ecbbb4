"""`edgepack repo`: its commands and where they are. Imports none of them until it is called."""

from edgepack.cli import TableGroup

__all__ = ["repo"]

_PUBLISHING = "edgepack_packager.cli.publishing"
_ROTATION = "edgepack_packager.cli.rotation"
_STAGING = "edgepack_packager.cli.staging"

repo = TableGroup(
    name="repo",
    help="Keep the signed repository that devices trust.",
    table={
        "init": (_PUBLISHING, "Make a publisher's home: offline keys and the root devices pin."),
        "publish": (_PUBLISHING, "Sign bundles into a fleet's repository or into a directory."),
        "revoke": (_PUBLISHING, "Revoke the models of a line below a security epoch."),
        "export": (_PUBLISHING, "Make a mirror for sites without a network."),
        "rotate": (_ROTATION, "Change who signs, by a new root."),
        "refresh": (_ROTATION, "Sign again what expires soon."),
        "status": (_ROTATION, "Show roles, keys, thresholds, versions, expiry."),
        "sign-request": (_STAGING, "Write a file that others sign."),
        "sign": (_STAGING, "Check such a file and add a signature."),
        "merge": (_STAGING, "Put signatures together and publish."),
    },
)

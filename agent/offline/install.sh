#!/bin/sh
# Install, upgrade or remove the edgepack agent from this directory alone: no network is used.
#   ./install.sh [--prefix DIR] [--no-service]   may be repeated; settings, identity and models stay
#   ./install.sh uninstall [--prefix DIR] [--purge]
# A new version is built beside the old one and taken into use by one rename, so a power cut in
# between leaves a working agent.
set -eu

main() {
    here=$(cd "$(dirname "$0")" && pwd)
    prefix=/opt/edgepack do=install service=yes purge=
    version='' extras='' python='' machine=''
    # shellcheck source=/dev/null
    . "$here/built-for"
    while [ $# -gt 0 ]; do
        case $1 in
            uninstall) do=uninstall ;;
            --prefix) [ $# -gt 1 ] || stop 2 "--prefix needs a directory"; prefix=$2; shift ;;
            --no-service) service= ;;
            --purge) purge=--purge ;;
            -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;;
            *) stop 2 "there is no option $1" "./install.sh --help" ;;
        esac
        shift
    done
    case $prefix in
        /*) ;;
        *) stop 2 "--prefix $prefix does not begin with /" ;;
    esac
    [ "$(id -u)" = 0 ] || stop 2 "this needs root" "sudo ./install.sh"
    $do
}

say() { echo "edgepack: $*" >&2; }
stop() { # CODE WHAT [FIX]
    echo "error: $2" >&2
    [ -z "${3-}" ] || echo "  fix: $3" >&2
    exit "$1"
}

find_python() {
    [ "$(uname -m)" = "$machine" ] ||
        stop 5 "this installer is for $machine, not $(uname -m)" "make one with --arch $(uname -m)"
    for found in "python$python" python3; do
        command -v "$found" >/dev/null 2>&1 || continue
        "$found" -c "import sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$python')" \
            2>/dev/null && return
    done
    stop 5 "Python $python is not here" "install it, or make an installer with --python of yours"
}

install() {
    find_python
    (cd "$here" && sha256sum --quiet --strict -c SHA256SUMS) ||
        stop 3 "these files are not what was packed" "copy the installer again"
    mkdir -p "$prefix/versions"
    new=$(mktemp -d "$prefix/versions/$version-XXXXXX")
    trap 'rm -rf "$new"' EXIT
    chmod 755 "$new"
    say "installing $version with $extras into $new"
    "$found" -m venv --without-pip "$new"
    # Settings of the machine's own pip are not meant for this one.
    for setting in $(env | sed -n 's/^\(PIP_[A-Z_]*\)=.*/\1/p'); do unset "$setting"; done
    # pip runs from its own wheel: Debian's Python has none without a package more.
    PYTHONPATH=$(echo "$here"/wheels/pip-*.whl) PIP_CONFIG_FILE=/dev/null "$new/bin/python" -m pip \
        install -q --no-index --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
        --find-links "$here/wheels" "edgepack[$extras]==$version" ||
        stop 5 "the packed wheels do not fit this system" "is its C library older? see above"
    "$new/bin/edgepack-agent" --version >/dev/null
    sync
    ln -s "$new" "$prefix/.next"
    mv -T "$prefix/.next" "$prefix/current"
    trap - EXIT
    program=$prefix/current/bin/edgepack-agent
    mkdir -p /usr/local/bin
    ln -sfn "$program" /usr/local/bin/edgepack-agent
    if [ -n "$service" ]; then
        for name in $(instances); do
            "$program" --instance "$name" service install --program "$program"
        done
        # A box that has instances only stays so.
        if [ -e "$units/edgepack-agent.service" ] || [ -z "$(instances)" ]; then
            "$program" service install --program "$program"
        fi
        [ ! -d /run/systemd/system ] || systemctl try-restart edgepack-agent 'edgepack-agent@*'
    fi
    for old in "$prefix/versions"/*; do
        [ "$old" = "$new" ] || rm -rf "$old"
    done
    sync
    say "installed; edgepack-agent doctor says how it is"
}

units=/etc/systemd/system
# The agents of this box that have a name, one a line.
instances() {
    for link in "$units"/multi-user.target.wants/edgepack-agent@*.service; do
        [ ! -L "$link" ] || basename "${link#*@}" .service
    done
}

uninstall() {
    if [ -x "$prefix/current/bin/edgepack-agent" ]; then
        for name in $(instances); do
            "$prefix/current/bin/edgepack-agent" --instance "$name" service uninstall $purge
        done
        "$prefix/current/bin/edgepack-agent" service uninstall $purge
    fi
    rm -rf "$prefix/current" "$prefix/versions"
    rmdir "$prefix" 2>/dev/null || true
    case $(readlink /usr/local/bin/edgepack-agent || true) in
        "$prefix"/*) rm -f /usr/local/bin/edgepack-agent ;;
    esac
    say "removed${purge:+ with everything that belonged to it}"
}

# All of this file has been read before any of it runs.
main "$@"

# Sourced by scripts/test and scripts/demo: brings a bare machine to a working .venv.
#
#   need COMMAND_OR_FILE PACKAGE...   ask for Debian packages when COMMAND_OR_FILE is missing
#   prepare EXTRAS                    install what was asked for; .venv with pagein[EXTRAS] in it
#   step NAME COMMAND...              run COMMAND silently; its output is shown only if it fails
#
# ${sudo[@]} starts a command as root (it is empty for root); can_root says whether it can.
# Needs bash and the repository's top as working directory.

umask 022                 # the user half runs as nobody and has to read what is installed here
PATH=$PWD/.venv/bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin:$PWD/.venv/debian/usr/bin
export PATH
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
unset PYTHONPATH PYTHONHOME

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

step() {
    local name=$1 log status
    shift
    log=$(mktemp)
    printf '%-34s' "$name" >&2
    local before=$SECONDS
    set +e                # `|| status=$?` would switch errexit off inside COMMAND as well
    (set -e; "$@") >"$log" 2>&1 </dev/null
    status=$?
    set -e
    if ((status)); then
        say "FAILED"
        cat "$log" >&2
        rm -f "$log"
        say "error: $name (exit code $status)"
        exit "$status"
    fi
    rm -f "$log"
    say "ok  $((SECONDS - before)) s"
}

sudo=()
can_root=yes
if ((EUID != 0)); then
    # A password is asked for only where somebody can type it.
    if command -v sudo >/dev/null &&
        { sudo -n true 2>/dev/null || { [[ -t 0 ]] && sudo -v; }; }; then
        sudo=(sudo)
    else
        can_root=no
    fi
fi

missing=()
need() {
    local what=$1
    shift
    command -v "$what" >/dev/null || [[ -e $what ]] || missing+=("$@")
}

_apt() {
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -y -o DPkg::Lock::Timeout=180 --no-install-recommends "$@"
}

_apt_install() {
    # Lists may be absent (a fresh image) or older than the mirror: then once more with new ones.
    _apt install "$@" || { _apt update && _apt install "$@"; }
}

# Without root: unpack packages below .venv/debian. Good for what is a single program or file.
_borrow() {
    local top=$PWD tmp apt
    tmp=$(mktemp -d)
    trap "rm -rf '$tmp'" EXIT
    mkdir -p "$tmp"/{lists,cache,debs}/partial
    apt=(apt-get -q -o Dir::State::lists="$tmp/lists" -o Dir::Cache="$tmp/cache")
    cd "$tmp/debs"
    "${apt[@]}" update
    "${apt[@]}" download "$@"
    for deb in *.deb; do dpkg-deb -x "$deb" "$top/.venv/debian"; done
    cd "$top"
}

# The first Python that is new enough and runs; a version manager's shim may do neither.
_find_python() {
    local candidate
    while read -r candidate; do
        "$candidate" -c "import sys, venv; $1; sys.exit(sys.version_info < (3, 11))" \
            >/dev/null 2>&1 </dev/null && echo "$candidate" && return
    done < <(type -aP python3 python3.14 python3.13 python3.12 python3.11)
    return 1
}

_make_venv() {
    local base
    rm -rf .venv
    if base=$(_find_python 'import ensurepip'); then
        "$base" -m venv .venv
        return
    fi
    # Debian's python3 without python3-venv, and no root to install it: pip comes as its wheel.
    base=$(_find_python 'pass')
    "$base" -m venv --without-pip .venv
    _borrow python3-pip-whl
    local wheels=(.venv/debian/usr/share/python-wheels/pip-*.whl)
    .venv/bin/python "${wheels[0]}/pip" install -q pip
}

_packages() {
    [[ -x .venv/bin/python ]] || _find_python 'import ensurepip' >/dev/null ||
        missing+=(python3-venv)
    ((${#missing[@]})) || return 0
    if ! command -v apt-get >/dev/null; then
        say "missing, and no apt-get to install it: ${missing[*]}"
    elif [[ $can_root = yes ]]; then
        step "install ${#missing[@]} Debian packages" _apt_install "${missing[@]}"
    else
        say "missing, and no root to install it: ${missing[*]}"
    fi
}

prepare() {
    local extras=$1 stamp state
    stamp=.venv/.installed-$extras
    _packages
    # A venv knows its own path; pyproject.toml says what belongs into it.
    state="$PWD $(sha256sum <pyproject.toml)"
    if ! .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' \
        2>/dev/null; then
        _find_python 'pass' >/dev/null || die "no python3 of version 3.11 or newer found"
        step "make .venv" _make_venv
    fi
    if [[ ! -e $stamp || $(<"$stamp") != "$state" ]]; then
        step "install pagein[$extras]" .venv/bin/python -m pip install -q -e ".[$extras]"
        printf '%s\n' "$state" >"$stamp"
    fi
    if [[ $can_root = no ]] && command -v apt-get >/dev/null &&
        ! command -v mkfs.erofs >/dev/null; then
        step "unpack erofs-utils into .venv" _borrow erofs-utils
    fi
}

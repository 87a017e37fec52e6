#!/bin/sh
# Build kwsd_VERSION_ARCHITECTURE.deb in a folder: `deb.sh FOLDER`. kwsd and all that it imports lie in a virtual environment
# of their own, on Debian's Python; what is only for training and TorchScript, which is several GB, does not.
set -eu
umask 022
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
here=$(cd "$(dirname "$0")" && pwd)
top=$(dirname "$here")
folder=$1
home=/usr/lib/kwsd
python=/usr/bin/python3 # the one that the package depends on

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
own=$root$home/bin/python

put() { # put MODE TARGET < content
    mkdir -p "$(dirname "$root$2")"
    cat >"$root$2"
    chmod "$1" "$root$2"
}

# --- the virtual environment ---

"$python" -m venv --without-pip "$root$home"
"$python" -m venv "$work/tools"
pip() { "$work/tools/bin/pip" --quiet --disable-pip-version-check "$@"; }

"$python" "$here/requirements.py" "$top/setup.cfg" >"$work/requirements"
mkdir "$work/source" # a copy, for setuptools builds where the sources are
(cd "$top" && cp -a setup.cfg setup.py pyproject.toml README.md LICENSE config.yaml kwsd models "$work/source")
rm -f "$work"/source/models/*.pt # TorchScript
pip --python "$own" install --no-compile --only-binary :all: --requirement "$work/requirements"
pip --python "$own" install --no-compile --no-deps "$work/source"
pip install 'docutils >= 0.22'

version=$("$own" -c 'import kwsd; print(kwsd.__version__)')
architecture=$(dpkg --print-architecture)
mkdir "$work/man"
PYTHONPATH=$(echo "$work"/tools/lib/python3*/site-packages) "$own" "$here/man.py" "$work/man"
for shell in bash zsh fish; do "$own" -m kwsd completion $shell >"$work/$shell"; done

# Where it was built is nobody's business, and nothing there finds it again.
find "$root$home/bin" ! -name kwsd ! -name 'python*' -type f -delete
sed -i "1s|.*|#!$home/bin/python|" "$root$home/bin/kwsd"
sed -i '/^command = /d' "$root$home/pyvenv.cfg"
rm -f "$root$home"/lib/python3*/site-packages/kwsd-*.dist-info/direct_url.json
rm -rf "$root$home/include" "$root$home/share"
find "$root$home/lib" -name __pycache__ -exec rm -r {} +
find "$root$home/lib" -type f -exec chmod 644 {} +
"$own" -m compileall -q -j 0 -s "$root" -p / --invalidation-mode unchecked-hash "$root$home/lib"

# --- the files around it ---

mkdir -p "$root/usr/bin"
ln -s ../lib/kwsd/bin/kwsd "$root/usr/bin/kwsd"
put 644 /etc/kwsd/config.yaml <"$top/config.yaml"
for unit in system/kwsd.service user/kwsd.service; do
    sed 's|^ExecStart=.*|ExecStart=/usr/bin/kwsd --config /etc/kwsd/config.yaml|' \
        "$top/systemd/${unit#system/}" | put 644 "/usr/lib/systemd/$unit"
done
put 644 /usr/lib/sysusers.d/kwsd.conf <"$top/systemd/sysusers.conf"
for page in "$work"/man/*; do
    gzip -9nc "$page" | put 644 "/usr/share/man/man${page##*.}/$(basename "$page").gz"
done
put 644 /usr/share/bash-completion/completions/kwsd <"$work/bash"
put 644 /usr/share/zsh/vendor-completions/_kwsd <"$work/zsh"
put 644 /usr/share/fish/vendor_completions.d/kwsd.fish <"$work/fish"
put 644 /usr/share/doc/kwsd/copyright <"$top/LICENSE"
put 644 /usr/share/doc/kwsd/README.md <"$top/README.md"
put 644 /usr/share/doc/kwsd/systemd.md <"$top/systemd/README.md"
put 644 /usr/share/doc/kwsd/examples/cuda.conf <"$top/systemd/cuda.conf"
put 644 /usr/share/doc/kwsd/CHANGELOG.md <"$top/CHANGELOG.md"

# --- the package ---

for script in postinst prerm postrm; do put 755 "/DEBIAN/$script" <"$here/$script"; done
echo /etc/kwsd/config.yaml | put 644 /DEBIAN/conffiles
training=$("$python" "$here/requirements.py" --left-out "$top/setup.cfg" | sed "s/ //g; s/.*/'&'/" | paste -sd ' ')
"$python" - >"$work/depends" <<END # /bin/kill, by which the unit reloads, is procps's
import sys
print("python3 (>= {0}.{1}), python3 (<< {0}.{2})".format(*sys.version_info[:2], sys.version_info[1] + 1))
print(" libportaudio2, libc6 (>= 2.28), libstdc++6, procps")
print(" systemd | systemd-standalone-sysusers | systemd-sysusers")
END
put 644 /DEBIAN/control <<END
Package: kwsd
Version: $version
Architecture: $architecture
Maintainer: kwsd <kwsd@localhost>
Section: sound
Priority: optional
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f1)
Depends: $(paste -sd , "$work/depends")
Description: hears spoken commands and turns them into JSON events
 A daemon that listens to microphones, recordings or satellites and tells of
 every word it knows. Nothing leaves the machine. The service is not started:
 look at /etc/kwsd/config.yaml, then systemctl enable --now kwsd, or the same
 with --user where a user's sound server has the microphone.
 .
 Models in ONNX are all it needs. To train, or to use models in TorchScript, add
 torch, with python3-pip installed; it goes when this package does:
 sudo pip --python $home/bin/python install $training
END
(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum) | put 644 /DEBIAN/md5sums
mkdir -p "$folder"
dpkg-deb --root-owner-group --build "$root" "$folder/kwsd_${version}_$architecture.deb"

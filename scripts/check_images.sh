#!/bin/sh
# Builds images of docker/Dockerfile without a Docker engine, and starts them confined as docker-compose.yml does.
# By hand, as root, on Debian with the packages buildah and debootstrap; the base image is made on the spot.
# Usage: scripts/check_images.sh FOLDER [STAGE...]
set -eu

folder=$1
shift
stages=${*:-service}
base=$(sed -n 's/^ARG PYTHON_IMAGE=//p' docker/Dockerfile)

build() {
    buildah --root "$folder/storage" --runroot "$folder/run" --storage-driver overlay "$@"
}

if ! build inspect "docker.io/library/$base" >/dev/null 2>&1; then
    # Debian's Python of the same minor version, in the places where the official image has its own.
    debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates \
        bookworm "$folder/base"
    rm -f "$folder"/base/usr/lib/python3*/EXTERNALLY-MANAGED
    ln -sf /usr/bin/python3 "$folder/base/usr/local/bin/python"
    ln -sf /usr/bin/pip "$folder/base/usr/local/bin/pip"
    cp /etc/ssl/certs/ca-certificates.crt "$folder/base/etc/ssl/certs/"
    container=$(build from scratch)
    build add --quiet "$container" "$folder/base" /
    build config --env PATH=/usr/local/bin:/usr/bin:/bin \
        --env PIP_CERT=/etc/ssl/certs/ca-certificates.crt "$container"
    build commit --quiet "$container" "docker.io/library/$base"
fi

for stage in $stages; do
    build build --isolation chroot --network host --pull=never --layers --quiet \
        --file docker/Dockerfile --ignorefile .dockerignore --target "$stage" --tag "expunge/$stage" .
    container=$(build from --pull=never "localhost/expunge/$stage")
    config() {
        build inspect "$container" | python3 -c \
            "import json, sys; print(*json.load(sys.stdin)['OCIv1']['config']['$1'])"
    }
    # A network of its own without a way out, a root file system that is read-only but for /tmp and the
    # volumes, a user without capabilities and with no way to gain any.
    unshare --mount --net sh -euc '
        root=$1 environment=$2 command=$3
        ip link set lo up
        mount --bind "$root" "$root"
        for writable in tmp var/lib/expunge; do
            mount -t tmpfs -o mode=1777 tmpfs "$root/$writable"
        done
        mkdir -m 1777 "$root/var/lib/expunge/keys" "$root/var/lib/expunge/work"
        mount --rbind /dev "$root/dev"
        mount -t proc proc "$root/proc"
        mount -o remount,bind,ro "$root"
        confined() {
            chroot "$root" setpriv --reuid 10001 --regid 10001 --clear-groups --inh-caps=-all \
                --bounding-set=-all --no-new-privs env -i $environment \
                EXPUNGE_DATABASE_URL=postgresql+psycopg://nobody@127.0.0.1:1/none \
                EXPUNGE_OBJECT_STORE=file:///var/lib/expunge/objects "$@"
        }
        test "$(confined id -u)" = 10001
        confined grep -q "^CapBnd:.*0000000000000000" /proc/self/status
        ! confined touch /opt/expunge/written 2>/dev/null
        confined expunge new-signing-key /var/lib/expunge/keys/signing-key.pem
        confined $command & started=$!
        answered=no
        for _ in $(seq 60); do
            sleep 1
            kill -0 "$started"
            case $command in
                *expunge.api*) probe="import urllib.request as r; r.urlopen(\"http://127.0.0.1:8000/healthz\")" ;;
                *) probe="import torch, expunge.worker.training_process" ;;
            esac
            if confined python -c "$probe" 2>/dev/null; then answered=yes; break; fi
        done
        test $answered = yes
        kill "$started"
        wait "$started" || true
        if confined python -c "import torch" 2>/dev/null; then echo "has PyTorch"; else echo "has no PyTorch"; fi
    ' sh "$(build mount "$container")" "$(config Env)" "$(config Cmd)"
    build umount "$container" >/dev/null
    build rm "$container" >/dev/null
    echo "$stage: as it should be"
done

#!/bin/bash
# Docker's place on a host of the tests: the host itself is the one container that Ray's cluster launcher asks for.
container=$HOME/.container # holds the image's name while it "runs"
verb=$1
shift
case $verb in
pull | info) ;;
inspect)
    case "$*" in
    *.State.Running*) [ -f "$container" ] && echo true ;;
    *.Config.Image*) cat "$container" ;;
    *.Config.Env*) echo "[\"HOME=$HOME\"]" ;;
    *.Mounts*) cat "$container.mounts" ;;
    esac
    ;;
run)
    mounts=
    while [ $# -gt 1 ]; do
        if [ "$1" = -v ]; then # source:destination
            source=${2%%:*} destination=${2#*:}
            mkdir -p "$(dirname "$destination")"
            if [ -d "$source" ]; then mkdir -p "$destination"; else touch "$destination"; fi
            mount --bind "$source" "$destination"
            mounts="$mounts${mounts:+, }{\"Destination\": \"$destination\"}"
        fi
        image=$last last=$1
        shift
    done
    echo "$last" > "$container"
    echo "[$mounts]" > "$container.mounts"
    ;;
exec)
    while [ "${1#-}" != "$1" ]; do
        [ "$1" = -e ] && shift
        shift
    done
    shift # the container's name
    exec "$@"
    ;;
stop)
    ray stop --force # whatever runs in a container ends with it
    grep -o '"/[^"]*"' "$container.mounts" | xargs -n 1 umount
    rm -f "$container"
    ;;
*) exit 1 ;;
esac

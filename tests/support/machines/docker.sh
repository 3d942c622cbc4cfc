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
    *.Mounts*) echo "[]" ;;
    esac
    ;;
run)
    while [ $# -gt 1 ]; do
        if [ "$1" = -v ]; then # source:destination
            mkdir -p "$(dirname "${2#*:}")"
            ln -sfn "${2%%:*}" "${2#*:}"
        fi
        image=$last last=$1
        shift
    done
    echo "$last" > "$container"
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
    rm -f "$container"
    ray stop --force # whatever runs in a container ends with it
    ;;
*) exit 1 ;;
esac

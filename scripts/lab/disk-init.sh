#!/bin/sh
# The init of a test guest that boots from a disk: a login, or with `single` or `emergency` on the kernel's command line a
# root shell, as System V's init does it.
export PATH=/sbin:/bin HOME=/root TERM=vt100

mode=login
for word in "$@"; do
    case "$word" in
        single | S | s | 1) mode=single ;;
        emergency | -b) mode=emergency ;;
    esac
done

cd /
if [ "$mode" != emergency ]; then
    mount -o remount,rw /
    mount -t tmpfs tmpfs /tmp
    mkdir -p /dev/pts
    mount -t devpts devpts /dev/pts
    hostname "$(cat /etc/hostname)"
fi
echo 1 > /proc/sys/kernel/sysrq
echo "INIT: $mode, $(uname -r)"

# The kernel panics when its first process ends, so what is left is followed by another.
while :; do
    if [ "$mode" = login ]; then
        setsid cttyhack getty -L 115200 - vt100
    else
        (cd "$HOME" && exec setsid cttyhack sh -l)
    fi
done
